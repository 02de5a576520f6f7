"""mlx_lm.server, unchanged but for the dtype: it has no option for it and computes in that of the checkpoint."""

import sys
from typing import Any

import mlx.core as mx
from mlx_lm import server as module

server: Any = module  # whose names are not declared as exports


def main(dtype: str, *arguments: str) -> None:
    """Run it. `dtype` is one of MLX's, such as float32; empty leaves the weights as they are in the files."""
    if dtype:
        load = server.load

        def converted(*places: Any, **options: Any) -> Any:
            model, *others = load(*places, **options)
            model.set_dtype(getattr(mx, dtype))
            mx.eval(model.parameters())
            return model, *others

        server.load = converted
    sys.argv = ["mlx_lm.server", *arguments]
    server.main()
