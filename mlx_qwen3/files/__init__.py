"""What is on disk: where a checkpoint is, its settings, which tensors it has, and the values of their bytes."""

__all__ = [
    "adapted",
    "adapters",
    "blank",
    "checkpoint",
    "config",
    "dtypes",
    "hub",
    "sizes",
    "values",
]
