"""The Qwen3 forward pass on MLX, its cache, and the way of weights into it."""
