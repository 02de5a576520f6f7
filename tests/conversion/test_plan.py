"""The plan of a conversion: the dtype of the result."""

import mlx.core as mx
from checkpoints import TINY, random_weights, write_checkpoint

from mlx_qwen3.conversion.convert import convert


def test_the_dtype_of_a_checkpoint_is_that_of_most_of_it(tmp_path):
    source = write_checkpoint(tmp_path / "source")
    arrays = {name: mx.array(value).astype(mx.bfloat16) for name, value in random_weights(TINY).items()}
    arrays["model.norm.weight"] = arrays["model.norm.weight"].astype(mx.float32)
    mx.save_safetensors(str(source / "model.safetensors"), arrays)
    assert convert(source, tmp_path / "out", divergence=False).dtype == "bfloat16"
