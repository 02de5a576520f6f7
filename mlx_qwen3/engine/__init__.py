"""Replies: a prompt is prefilled, tokens are sampled and decoded, and their text is streamed."""

__all__ = ["decode", "engine", "memory", "reply", "request", "runner", "sampling"]  # the public modules
