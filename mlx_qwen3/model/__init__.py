"""The Qwen3 forward pass on MLX, its cache, and the way of weights into it."""

__all__ = ["cache", "kernels", "load", "qwen3"]  # the public modules
