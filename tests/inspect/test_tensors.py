"""The weights table: every tensor as stored, collapsed where layers agree, outliers named."""

import mlx.core as mx
import numpy as np
import pytest
from arrays import as_numpy
from checkpoints import AFFINE_4, PACKABLE, TINY, TINY_MOE, random_weights, shapes, write_checkpoint, write_packed
from releases import write_fp8, write_gptq
from safetensors.numpy import load_file

from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.inspect import load_rules
from mlx_qwen3.inspect.tensors import collapsed, read_rows, spans
from mlx_qwen3.model.load import load_model

NINE = {**TINY, "num_hidden_layers": 9}


def rows_of(folder):
    return read_rows(Checkpoint(folder), load_rules())


def changed(tmp_path, name, change):
    weights = random_weights(NINE)
    weights[name] = change(weights[name].copy())
    return rows_of(write_checkpoint(tmp_path, NINE, weights))


def numbers(statistics):
    return [statistics.mean, statistics.std, statistics.min, statistics.max]


def by_numpy(values):
    values = values.astype(np.float64)
    return [values.mean(), values.std(), values.min(), values.max()]


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_every_tensor_as_stored(dtype, tmp_path):
    folder = write_checkpoint(tmp_path, NINE)
    stored = {name: mx.array(value).astype(dtype) for name, value in random_weights(NINE).items()}
    mx.save_safetensors(str(folder / "model.safetensors"), stored)
    rows = rows_of(folder)
    assert {row.name: row.shape for row in rows} == shapes(NINE)
    assert {row.dtype for row in rows} == {{mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16"}[dtype]}
    assert sum(row.parameters for row in rows) == sum(value.size for value in stored.values())
    assert sum(row.bytes for row in rows) == sum(value.nbytes for value in stored.values())
    for row in rows:
        assert row.parameters == stored[row.name].size
        assert numbers(row.statistics) == pytest.approx(by_numpy(as_numpy(stored[row.name])), rel=1e-5, abs=1e-6)
    assert [row.layers for row in rows if "q_norm" in row.name] == [(i,) for i in range(9)]


def test_layers_that_agree_are_one_row(tmp_path):
    weights = random_weights(NINE)
    rows = collapsed(rows_of(write_checkpoint(tmp_path, NINE, weights)))
    assert len(rows) == 13  # 11 of the block, embedding, norm
    row = next(row for row in rows if "q_proj" in row.name)
    assert row.name == "model.layers.{0-8}.self_attn.q_proj.weight"
    together = np.stack([weights[f"model.layers.{i}.self_attn.q_proj.weight"] for i in range(9)])
    assert numbers(row.statistics) == pytest.approx(by_numpy(together), rel=1e-5, abs=1e-6)
    assert (row.parameters, row.shape, row.layers) == (together.size, (120, 48), tuple(range(9)))


def test_another_dtype_or_shape_is_a_row_of_its_own(tmp_path):
    folder = write_checkpoint(tmp_path, NINE)
    stored = {name: mx.array(value) for name, value in random_weights(NINE).items()}
    name = "model.layers.4.mlp.down_proj.weight"
    stored[name] = stored[name].astype(mx.bfloat16)
    mx.save_safetensors(str(folder / "model.safetensors"), stored)
    found = {row.name: row.dtype for row in collapsed(rows_of(folder)) if "down_proj" in row.name}
    assert found == {"model.layers.{0-3,5-8}.mlp.down_proj.weight": "F32", name: "BF16"}


OUTLIERS = {
    "scaled": ("layers.7.mlp.up_proj.weight", lambda w: w * 30, "rms"),
    "shrunk": ("layers.7.self_attn.o_proj.weight", lambda w: w * 0.03, "rms"),
    "one large value": ("layers.2.self_attn.v_proj.weight", lambda w: np.where(w == w.max(), 50, w), "largest value"),
    "shifted": ("layers.5.mlp.down_proj.weight", lambda w: w + np.float32(0.2), "mean"),
    "a norm of another size": ("layers.0.self_attn.k_norm.weight", lambda w: w * 12, "rms"),
    "half of it zeros": ("layers.3.mlp.gate_proj.weight", lambda w: w * (np.arange(80) % 2)[:, None], "50% zeros"),
    "all zeros": ("layers.8.self_attn.q_proj.weight", lambda w: w * 0, "100% zeros"),
}


@pytest.mark.parametrize(("tensor", "change", "word"), OUTLIERS.values(), ids=OUTLIERS.keys())
def test_an_outlier_against_the_other_layers_is_named(tensor, change, word, tmp_path):
    name = f"model.{tensor}"
    rows = changed(tmp_path, name, lambda w: change(w).astype(np.float32))
    assert [row.name for row in rows if row.warnings] == [name]
    assert any(word in warning for row in rows for warning in row.warnings)
    assert name in [row.name for row in collapsed(rows)]  # it stands by itself


def test_layers_that_change_with_depth_are_not_outliers(tmp_path):
    weights = random_weights(NINE)
    for name in weights:
        if "layers" in name:
            weights[name] *= np.float32(1.3 ** int(name.split(".")[2]))
    assert not any(row.warnings for row in rows_of(write_checkpoint(tmp_path, NINE, weights)))


def test_two_layers_cannot_tell_which_is_odd(tmp_path):
    weights = random_weights(TINY)
    weights["model.layers.1.mlp.up_proj.weight"] *= 100
    assert not any(row.warnings for row in rows_of(write_checkpoint(tmp_path, weights=weights)))


def test_nan_infinite_and_zero_values_are_counted(tmp_path):
    def spoil(w):
        w.reshape(-1)[:6] = [np.nan, np.nan, np.inf, -np.inf, 0, 0]
        return w

    row = next(row for row in changed(tmp_path, "model.layers.3.self_attn.q_proj.weight", spoil) if row.sick)
    assert (row.statistics.nan, row.statistics.inf, row.statistics.zeros) == (2, 2, pytest.approx(2 / (120 * 48)))
    assert row.statistics.mean is not None


@pytest.mark.parametrize("native", [False, True], ids=["mlx-lm", "native"])
def test_packed_weights_are_shown_as_stored_and_counted_unpacked(native, tmp_path):
    folder = write_packed(tmp_path / "packed", AFFINE_4)
    if native:
        convert(folder, tmp_path / "native")
        folder = tmp_path / "native"
    rows = {row.name: row for row in rows_of(folder)}
    stored = load_file(folder / "model.safetensors")
    assert {name: row.shape for name, row in rows.items()} == {name: array.shape for name, array in stored.items()}
    plain = random_weights({**TINY, **PACKABLE})
    assert sum(row.parameters for row in rows.values()) == sum(value.size for value in plain.values())
    name = "layers.1.mlp.down_proj.weight" if native else "model.layers.1.mlp.down_proj.weight"
    assert (rows[name].dtype, rows[name].parameters) == ("U32", 128 * 192)
    values = as_numpy(dequantized(folder))
    assert numbers(rows[name].statistics) == pytest.approx(by_numpy(values), rel=1e-5, abs=1e-6)
    assert rows[name.replace("weight", "scales")].parameters == 0


def dequantized(folder):
    module = load_model(folder, "fp32").layers[1].mlp.down_proj
    return mx.dequantize(module.weight, module.scales, module.biases, module.group_size, module.bits)


def test_a_repeated_lm_head_is_listed_and_not_counted(tmp_path):
    weights = random_weights(TINY)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    rows = rows_of(write_checkpoint(tmp_path, weights=weights))
    assert {row.name: row.parameters for row in rows}["lm_head.weight"] == 0
    assert sum(row.parameters for row in rows) == sum(w.size for n, w in weights.items() if n != "lm_head.weight")


def test_runs_of_layers():
    assert [spans(n) for n in ([0, 1, 2], [0, 2, 3, 9], [5])] == ["0-2", "0,2-3,9", "5"]


@pytest.mark.parametrize(("write", "dtype"), [(write_fp8, "F8_E4M3"), (write_gptq, "U32")])
def test_the_weights_of_a_release_have_the_statistics_of_their_values(write, dtype, tmp_path):
    release = write(tmp_path / "release", **({"scheme": "static"} if write is write_fp8 else {}))
    rows = {row.name: row for row in rows_of(release.folder)}
    for name, values in release.weights.items():
        row = rows[name]
        np.testing.assert_allclose(numbers(row.statistics), by_numpy(values), rtol=1e-5, atol=1e-7)
        assert row.parameters == values.size
    assert rows["model.layers.1.mlp.up_proj.weight"].dtype == dtype
    assert sum(row.parameters for row in rows.values()) == sum(values.size for values in release.weights.values())
    assert not [name for name in rows if name.endswith(("activation_scale", "bias"))]


SIXTEEN = {**TINY_MOE, "num_experts": 16, "num_hidden_layers": 5}  # layer 1 has a dense MLP


def test_experts_that_agree_are_one_row(tmp_path):
    weights = random_weights(SIXTEEN)
    rows = collapsed(rows_of(write_checkpoint(tmp_path, SIXTEEN, weights)))
    names = [row.name for row in rows]
    assert names[9:13] == [
        "model.layers.{0,2-4}.mlp.gate.weight",
        *(f"model.layers.{{0,2-4}}.mlp.experts.{{0-15}}.{name}_proj.weight" for name in ("gate", "up", "down")),
    ]
    row = rows[10]
    layers = [[weights[f"model.layers.{i}.mlp.experts.{e}.gate_proj.weight"] for e in range(16)] for i in (0, 2, 3, 4)]
    assert numbers(row.statistics) == pytest.approx(by_numpy(np.stack(layers)), rel=1e-5, abs=1e-6)
    assert (row.parameters, row.shape, row.layers) == (4 * 16 * 28 * 48, (28, 48), (0, 2, 3, 4))


def test_an_expert_that_differs_from_the_others_is_named(tmp_path):
    weights = random_weights(SIXTEEN)
    name = "model.layers.3.mlp.experts.6.up_proj.weight"
    weights[name] *= 30
    rows = rows_of(write_checkpoint(tmp_path, SIXTEEN, weights))
    [odd] = [row for row in rows if row.warnings]
    assert odd.name == name
    assert "median of the experts" in odd.warnings[0]
    assert {name, "model.layers.{0,2,4}.mlp.experts.{0-15}.up_proj.weight"} | {
        "model.layers.3.mlp.experts.{0-5,7-15}.up_proj.weight"
    } == {row.name for row in collapsed(rows) if "experts" in row.name and "up_proj" in row.name}


@pytest.mark.parametrize("packed", [False, True], ids=["float", "packed"])
def test_stacked_experts_have_the_statistics_and_parameters_of_all(packed, tmp_path):
    sizes = {**TINY_MOE, **PACKABLE, "moe_intermediate_size": 64}
    plain = write_checkpoint(tmp_path / "plain", sizes)
    convert(plain, tmp_path / "native", quantize="affine8" if packed else None)
    rows = rows_of(tmp_path / "native")
    weights = random_weights(sizes)
    assert sum(row.parameters for row in rows) == sum(value.size for value in weights.values())
    [row] = [row for row in rows if "layers.2." in row.name and row.name.endswith("down_proj.weight")]
    together = np.stack([weights[f"model.layers.2.mlp.experts.{expert}.down_proj.weight"] for expert in range(7)])
    assert row.parameters == together.size
    assert numbers(row.statistics) == pytest.approx(by_numpy(together), rel=0.02, abs=0.002)


def test_tensors_that_transformers_fuses_are_counted(tmp_path):
    weights = random_weights(TINY_MOE)
    fused = {name: value for name, value in weights.items() if "experts" not in name}
    for layer in (0, 2):
        prefix = f"model.layers.{layer}.mlp.experts"
        gates, ups, downs = (
            np.stack([weights[f"{prefix}.{expert}.{name}_proj.weight"] for expert in range(7)])
            for name in ("gate", "up", "down")
        )
        fused |= {f"{prefix}.gate_up_proj": np.concatenate([gates, ups], axis=1), f"{prefix}.down_proj": downs}
    rows = rows_of(write_checkpoint(tmp_path, TINY_MOE, fused))
    assert sum(row.parameters for row in rows) == sum(value.size for value in weights.values())
    names = [row.name for row in rows if "layers.2.mlp" in row.name]
    assert names == [
        f"model.layers.2.mlp.{name}" for name in ("gate.weight", "experts.gate_up_proj", "experts.down_proj")
    ]
