import math

import numpy as np
import pytest
from adapting import peft_deltas, write_mlx_lm, write_peft
from checkpoints import TINY, TINY_MOE, random_weights

from mlx_qwen3.errors import UsageError
from mlx_qwen3.files.adapters import open_adapter
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.inspect import Options, as_json, inspect, render
from mlx_qwen3.inspect.adapters import adapter_rows


def rows(folder, *adapters):
    base = Checkpoint(folder)
    return adapter_rows(base, [open_adapter(adapter, base.config) for adapter in adapters])


def test_the_size_of_a_change(tiny, tmp_path):
    adapter = write_peft(tmp_path, ("q_proj", "up_proj"), rank_pattern={r"layers\.1\.mlp\.up_proj": 4})
    first, second, half, _ = rows(tiny, adapter, f"{adapter}=0.5")
    weights, deltas = random_weights(TINY), peft_deltas(adapter)
    sizes = {name: np.linalg.norm(delta) / np.linalg.norm(weights[name]) for name, delta in deltas.items()}
    of_q = [sizes[f"model.layers.{layer}.self_attn.q_proj.weight"] for layer in (0, 1)]
    assert (first.part, first.parts, first.ranks, first.scales) == ("self_attn.q_proj", 2, (4,), (2.0,))
    assert math.isclose(first.change, sum(of_q) / 2, rel_tol=1e-5)
    assert math.isclose(first.largest, max(of_q), rel_tol=1e-5)
    assert first.largest_in == f"layers.{int(np.argmax(of_q))}.self_attn.q_proj"
    assert math.isclose(half.change, first.change / 2, rel_tol=1e-5)
    assert second.part == "mlp.up_proj"
    assert half.adapter == f"{adapter}=0.5"


def test_experts_and_replaced_weights(tiny_moe, tiny, tmp_path):
    of_experts = rows(tiny_moe, write_mlx_lm(tmp_path / "a", model=TINY_MOE, keys=["mlp.switch_mlp.up_proj"]))
    assert [(row.part, row.parts) for row in of_experts] == [("mlp.experts.*.up_proj", 14)]
    norm = {"base_model.model.model.norm.weight": 2 * random_weights(TINY)["model.norm.weight"]}
    folder = write_peft(tmp_path / "b", (), change=lambda t: t.update(norm), modules_to_save=["model.norm"])
    [row] = rows(tiny, folder)
    assert (row.part, row.ranks, round(row.change, 5)) == ("norm", (), 1.0)


def test_a_change_that_is_not_finite_has_no_size(tiny, tmp_path):
    def damage(tensors):
        tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"][0, 0] = math.nan

    [row] = rows(tiny, write_peft(tmp_path, ("q_proj",), change=damage))
    assert (row.change, row.largest, row.largest_in) == (None, None, "layers.1.self_attn.q_proj")


@pytest.mark.parametrize("against", ["reference", "transformers"])
def test_the_pass_is_that_of_the_adapted_model(against, tiny, tmp_path):
    pytest.importorskip("torch")
    if against == "transformers":
        pytest.importorskip("peft")
    adapter = str(write_peft(tmp_path / "a", ("q_proj", "down_proj")))
    plain, report = (inspect(tiny, Options(against=against, adapters=given)) for given in ((), (f"{adapter}=0.5",)))
    assert report.comparison.first_outside is None
    assert plain.numbers.overall[0, "q_norm"] != report.numbers.overall[0, "q_norm"]
    text = render(report)
    assert text.startswith(f"{tiny} with {adapter}=0.5: ")
    assert "\nAdapters\n" in text
    assert [row["part"] for row in as_json(report)["adapters"]] == ["self_attn.q_proj", "mlp.down_proj"]
    assert as_json(plain)["adapters"] == []
    effect = inspect(tiny, Options(against=str(tiny), adapters=[adapter]))
    assert (effect.comparison.first_outside.layer, effect.comparison.first_outside.step) == (0, "qkv")


def test_an_adapter_that_cannot_be_used_is_refused(tiny, tmp_path):
    with pytest.raises(UsageError, match="expected a number"):
        inspect(tiny, Options(adapters=[f"{write_peft(tmp_path)}=x"]))
