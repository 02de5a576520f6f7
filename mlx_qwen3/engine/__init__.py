"""Replies: a prompt is prefilled, tokens are sampled and decoded, and their text is streamed."""

# The public modules
__all__ = [
    "decode",
    "engine",
    "grammar",
    "memory",
    "reply",
    "request",
    "rows",
    "runner",
    "sampler",
    "sampling",
    "scheduler",
    "specs",
    "threads",
    "weights",
]
