"""What the probe sees: the model's own steps, and no bit of them changed."""

import mlx.core as mx
import numpy as np
import pytest
from arrays import as_numpy
from checkpoints import AFFINE_4, write_checkpoint, write_packed

from mlx_qwen3.compare.flow import AFTER_LAYERS, DENSE, EVENTS, SPARSE
from mlx_qwen3.compare.probe import Probe
from mlx_qwen3.engine.runner import decode_step, prefill
from mlx_qwen3.model.linear import ConcatLinear
from mlx_qwen3.model.load import load_model
from mlx_qwen3.model.moe import MoE

SIX_BITS = {"mode": "affine", "bits": 6, "group_size": 64}


class Everything:
    """A visitor that keeps every array."""

    def __init__(self):
        self.arrays = {}

    def step(self, layer, step, array):
        self.arrays.setdefault((layer, step.name), []).append(as_numpy(array))

    def scores(self, layer, q, blocks, keys):
        for _, scores, weights, _ in blocks():
            self.arrays.setdefault((layer, "scores"), []).append(as_numpy(scores))
            self.arrays.setdefault((layer, "softmax"), []).append(as_numpy(weights))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probed")
    return {
        "float": write_checkpoint(folder / "float"),
        "untied": write_checkpoint(folder / "untied", tie_word_embeddings=False),
        "packed": write_packed(folder / "packed", AFFINE_4),
        # v has other bits, so that q, k and v cannot share a matrix
        "parts": write_packed(folder / "parts", AFFINE_4, {"v_proj": SIX_BITS, "up_proj": SIX_BITS}),
    }


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, "fp32") for name in ("float", "untied", "packed", "parts")), ("float", "bf16"), ("float", "fp16")],
)
@pytest.mark.parametrize("padding", [None, [0, 6]], ids=["", "padded"])
def test_logits_with_and_without_the_probe_are_identical_bits(name, dtype, padding, sources, ids):
    """A batch of two, a prefix in the cache, a second chunk and single steps."""
    model = load_model(sources[name], dtype)
    assert isinstance(model.layers[0].self_attn.qkv_proj, ConcatLinear) == (name == "parts")
    pieces = np.split(ids, [20, 34, 35, 36], axis=1)

    def run(watched):
        cache, logits = model.make_cache(2, padding), []
        probe = Probe(model, cache, Everything()) if watched else None
        for piece in pieces:
            logits.append(model(mx.array(piece), cache, probe))
        step = decode_step(model)
        for token in (5, 77):
            logits.append(step(mx.array([token, token]), cache, probe))
        return [np.array(x.view(mx.uint16 if x.dtype.size == 2 else mx.uint32)) for x in logits]

    for plain, probed in zip(run(False), run(True), strict=True):
        np.testing.assert_array_equal(probed, plain)


@pytest.mark.parametrize("replayed", [False, True], ids=["prompt", "decode step"])
@pytest.mark.parametrize("source", ["tiny", "tiny_moe"])
def test_every_step_of_every_layer_is_seen(source, ids, replayed, request):
    collector = Everything()
    model = load_model(request.getfixturevalue(source))
    cache = model.make_cache(2)
    probe = Probe(model, cache, collector)
    if replayed:
        mx.eval(prefill(model, mx.array(ids), cache))
        decode_step(model)(mx.array([5, 77]), cache, probe)
    else:
        model(mx.array(ids), cache, probe)
    wanted = {(None, "final_norm"), (None, "logits")}
    for layer, block in enumerate(model.layers):
        absent = {*AFTER_LAYERS, *(DENSE if isinstance(block.mlp, MoE) else SPARSE)}
        wanted |= {(layer, step.name) for event in EVENTS.keys() - absent for step in EVENTS[event]}
    hidden = {(layer, name) for layer in range(len(model.layers)) for name in ("scores", "softmax")}
    assert collector.arrays.keys() - wanted == hidden
    assert wanted <= collector.arrays.keys()
    assert collector.arrays[(1, "k_cache")][0].shape == (2, 2, 37 + replayed, 20)
