"""The Qwen3 forward pass on MLX, its cache, and the loading of its weights."""

__all__ = ["cache", "kernels", "load", "qwen3"]  # the public modules
