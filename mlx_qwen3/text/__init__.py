"""Text to token ids and back: tokenizer, chat template, and the parts of a streamed reply."""

__all__ = ["tokenizer", "tool_calls"]  # the public modules
