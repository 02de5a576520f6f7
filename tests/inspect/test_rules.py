"""Statistics against numpy, verdicts at their limits, rules from a file."""

import json
import math

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import TINY, random_weights, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_qwen3.compare.flow import NUMBERS
from mlx_qwen3.errors import UsageError
from mlx_qwen3.inspect import Options, inspect, load_rules
from mlx_qwen3.inspect.rules import ABNORMAL, DEFAULT, NORMAL, UNUSUAL, judge
from mlx_qwen3.inspect.statistics import Accumulator, grouped, pooled, summarize
from mlx_qwen3.inspect.tables import forecast

SEED = np.random.default_rng(5)


def expected(values):
    values = values.astype(np.float64)
    finite = values[np.isfinite(values)]
    moments = [finite.mean(), finite.std(), math.sqrt((finite**2).mean()), finite.min(), finite.max()]
    odd = [np.isnan(values).sum(), np.isinf(values).sum()]
    return [*moments, *odd, (values == 0).mean()]


def found(s):
    return [s.mean, s.std, s.rms, s.min, s.max, s.nan, s.inf, s.zeros]


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 9)),
    offset=st.sampled_from([0.0, 1e3, -1e-3]),
    scale=st.sampled_from([1.0, 1e-6, 1e5]),
    odd=st.lists(st.sampled_from([np.nan, np.inf, -np.inf, 0.0]), max_size=4),
)
@settings(max_examples=80, deadline=None)
def test_statistics_are_numpys(shape, offset, scale, odd):
    values = (np.random.default_rng(1).normal(size=shape) * scale + offset).astype(np.float32)
    values.reshape(-1)[: len(odd)] = odd[: values.size]
    if not np.isfinite(values).any():
        assert found(summarize(mx.array(values)))[:5] == [None] * 5
        return
    near = 1e-5 * max(scale, abs(offset))
    assert found(summarize(mx.array(values))) == pytest.approx(expected(values), rel=1e-5, abs=near)


def test_pieces_groups_and_pools_give_the_whole():
    values = SEED.normal(3, 2, (2, 6, 50, 8)).astype(np.float32)
    accumulator = Accumulator(6)
    for start in range(0, 50, 7):
        accumulator.add(grouped(mx.array(values[:, :, start : start + 7]), 1))
    assert found(accumulator.overall()) == pytest.approx(expected(values), rel=1e-5)
    for head, statistics in enumerate(accumulator.each()):
        assert found(statistics) == pytest.approx(expected(values[:, head]), rel=1e-5)
    halves = [summarize(mx.array(half)) for half in (values[:1], values[1:, :2], values[1:, 2:])]
    assert found(pooled(halves)) == pytest.approx(expected(values), rel=1e-5)


def test_large_arrays_keep_their_digits():
    """Nine million numbers, more than one piece, far from 0: a float32 sum alone would be off in the fourth digit."""
    values = SEED.normal(100, 1, (3000, 3000)).astype(np.float32)
    assert found(summarize(mx.array(values))) == pytest.approx(expected(values), rel=1e-5)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
def test_every_float_dtype(dtype):
    values = mx.array(SEED.normal(size=(30, 8)).astype(np.float32)).astype(dtype)
    assert found(summarize(values)) == pytest.approx(expected(np.array(values.astype(mx.float32))), rel=1e-5, abs=1e-7)


def test_numbers_whose_squares_leave_float32():
    values = np.array([1e30, -2e30, 3e30, 5.0], np.float32)
    assert found(summarize(mx.array(values))) == pytest.approx(expected(values), rel=1e-5)


def filled(**changes):
    """A batch of numbers with mean 0 and std 1 that reach 3, then changed."""
    values = np.tile([-3.0, -0.5, -0.5, -0.5, 0.5, 0.5, 0.5, 3.0], 100) / math.sqrt(19.5 / 8)
    values = values * changes.get("std", 1) + changes.get("mean", 0)
    if "peak" in changes:
        values[0] = changes["peak"]
    return summarize(mx.array(values.astype(np.float32)))


QKV = ("q_heads", "k_heads", "v_heads", "q_norm", "k_norm", "q_rope", "k_rope")


@pytest.mark.parametrize("name", QKV)
@pytest.mark.parametrize(
    ("changes", "level", "word"),
    [
        ({}, NORMAL, None),
        ({"std": 0.55}, NORMAL, None),
        ({"std": 1.9}, NORMAL, None),
        ({"std": 0.4}, UNUSUAL, "std 0.4 below 0.5"),
        ({"std": 2.5}, UNUSUAL, "std 2.5 above 2"),
        ({"mean": 2}, UNUSUAL, "mean 2 above 0.5"),
        ({"peak": 12}, UNUSUAL, "|value| 12 above 10"),
        ({"mean": 10.5}, ABNORMAL, "mean 10.5 above 10 (shifted)"),
        ({"mean": -10.5}, ABNORMAL, "mean -10.5 below -10 (shifted)"),
        ({"std": 0.005}, ABNORMAL, "std 0.005 below 0.01 (collapse)"),
        ({"std": 0}, ABNORMAL, "std 0 below 0.01 (collapse)"),
        ({"std": 10.5}, ABNORMAL, "std 10.5 above 10 (explosion)"),
        ({"peak": 1.1e5}, ABNORMAL, "|value| 1.1e+05 above 1e+05"),
        ({"peak": math.nan}, ABNORMAL, "1 NaN"),
        ({"peak": -math.inf}, ABNORMAL, "1 infinite"),
    ],
)
def test_verdicts_on_queries_keys_and_values(name, changes, level, word):
    verdict = judge(name, filled(**changes), load_rules(), {})
    assert verdict.level == level
    assert word is None or word in verdict.reasons


@pytest.mark.parametrize(
    ("changes", "level", "word"),
    [
        ({}, NORMAL, None),
        ({"peak": 5.5}, NORMAL, None),
        ({"peak": 60}, UNUSUAL, "|value| 60 above 6"),
        ({"peak": 999}, UNUSUAL, None),
        ({"peak": -1001}, ABNORMAL, "|value| 1e+03 above 1e+03 (softmax sees one token)"),
    ],
)
def test_verdicts_on_scores(changes, level, word):
    verdict = judge("scores", filled(**changes), load_rules(), {})
    assert verdict.level == level
    assert word is None or word in verdict.reasons


def test_sizes_scale_ranges_but_not_what_float_and_softmax_hold():
    rules, sizes = load_rules(), {"q_norm": 20.0, "qk_norm": 40.0}
    assert judge("q_norm", filled(std=25), rules, sizes).level == NORMAL
    assert judge("q_norm", filled(std=25), rules, {}).level == ABNORMAL
    assert judge("q_norm", filled(std=0.1), rules, sizes).level == ABNORMAL
    assert judge("q_norm", filled(std=25, peak=1.2e5), rules, sizes).level == ABNORMAL
    assert judge("scores", filled(std=40, peak=230), rules, sizes).level == NORMAL
    assert judge("scores", filled(std=40, peak=1001), rules, sizes).level == ABNORMAL


@pytest.mark.parametrize("step", NUMBERS, ids=lambda step: step.name)
def test_nan_is_a_fault_everywhere(step):
    assert judge(step.name, filled(peak=math.nan), load_rules(), {}).level == ABNORMAL


def healthy(config, q=1.0, k=1.0, embedding=1.0):
    """What training does to real layers: norm weights that scale q and k, a stream that grows with depth."""
    weights = random_weights(config)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        weights[f"{prefix}self_attn.q_norm.weight"] *= np.float32(q)
        weights[f"{prefix}self_attn.k_norm.weight"] *= np.float32(k)
        weights[f"{prefix}mlp.down_proj.weight"] *= np.float32(3.0**layer)
    weights["model.embed_tokens.weight"] *= np.float32(embedding)
    return weights


@pytest.mark.parametrize(("q", "k"), [(1, 1), (12, 2), (2, 30), (0.1, 8)])
def test_a_healthy_checkpoint_is_not_reported_sick(q, k, tmp_path):
    """Queries of std 12 and keys of std 30 after QK-norm are what the norm weights ask for; the embedding is small."""
    config = {**TINY, "num_hidden_layers": 6}
    write_checkpoint(tmp_path, config, healthy(config, q, k, 0.02))
    report = inspect(tmp_path, Options(heads=True))
    assert report.faults == []
    assert report.complaint is None
    levels = {key[1]: verdict.level for key, verdict in report.verdicts.items() if key[0] == 3}
    assert levels["q_norm"] == levels["k_norm"] == NORMAL
    assert any("QK-norm" in note for note in report.rules.notes)


@pytest.mark.parametrize("scale", [4, 5])
def test_projections_that_are_large_in_all_layers_are_healthy(scale, tmp_path):
    """The demo model of this package has std 2.5 to 5 before QK-norm. One layer is measured by the others."""
    config = {**TINY, "num_hidden_layers": 6}
    weights = healthy(config)
    for name in weights:
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            weights[name] *= np.float32(scale * (2.5 if "layers.4" in name else 1))
    assert inspect(write_checkpoint(tmp_path / "large", config, weights), Options()).faults == []
    for name in weights:
        if name.endswith("k_proj.weight"):
            weights[name] *= np.float32(12 if "layers.3" in name else 1)
    fault = inspect(write_checkpoint(tmp_path / "larger", config, weights), Options()).first_fault
    assert (fault.layer, fault.step) == (3, "k_heads")


def test_explosion_in_all_layers_is_one(tmp_path):
    config = {**TINY, "num_hidden_layers": 6}
    weights = {n: w * np.float32(1000 if "v_proj" in n else 1) for n, w in random_weights(config).items()}
    fault = inspect(write_checkpoint(tmp_path, config, weights), Options()).first_fault
    assert (fault.layer, fault.step) == (0, "v_heads")


FAULTS = {
    "collapsed queries": ("layers.3.self_attn.q_proj.weight", 0, 3, "q_heads", "collapse"),
    "collapsed norm": ("layers.3.self_attn.q_norm.weight", 0, 3, "q_norm", "collapse"),
    "exploded keys": ("layers.2.self_attn.k_proj.weight", 1000, 2, "k_heads", "explosion"),
    "exploded queries": ("layers.0.self_attn.q_proj.weight", 12, 0, "q_heads", "above 10 (explosion)"),
    "exploded values": ("layers.4.self_attn.v_proj.weight", 12, 4, "v_heads", "above 10 (explosion)"),
    "exploded norm": ("layers.1.self_attn.k_norm.weight", 1e5, 1, "k_norm", "explosion"),
    "saturated scores": ("layers.1.self_attn.q_norm.weight", 2000, 1, "q_norm", "explosion"),
    "a stream past 1e5": ("layers.4.mlp.down_proj.weight", 1e7, 4, "down", "|value|"),
    "NaN": ("layers.5.mlp.up_proj.weight", math.nan, 5, "gate_up", "NaN"),
    "infinite": ("layers.0.self_attn.o_proj.weight", math.inf, 0, "o_proj", "NaN"),
    "a dead embedding": ("embed_tokens.weight", 0, 0, "input", "std 0"),
}


@pytest.mark.parametrize(("tensor", "factor", "layer", "step", "word"), FAULTS.values(), ids=FAULTS.keys())
def test_the_first_bad_layer_is_named(tensor, factor, layer, step, word, tmp_path):
    config = {**TINY, "num_hidden_layers": 6}
    weights = healthy(config)
    with np.errstate(invalid="ignore", over="ignore"):
        weights[f"model.{tensor}"] = (weights[f"model.{tensor}"] * np.float64(factor)).astype(np.float32)
    report = inspect(write_checkpoint(tmp_path, config, weights), Options())
    assert (report.first_fault.layer, report.first_fault.step) == (layer, step)
    assert any(word in reason for reason in report.first_fault.reasons)


def test_one_head_of_many_is_found_by_heads_alone(tmp_path):
    """Its queries vanish before the norm, which hides it: five others keep the whole within its range."""
    config = {**TINY, "num_hidden_layers": 3}
    weights = random_weights(config)
    weights["model.layers.1.self_attn.q_proj.weight"][4 * 20 : 5 * 20] = 0
    write_checkpoint(tmp_path, config, weights)
    assert inspect(tmp_path, Options()).faults == []
    fault = inspect(tmp_path, Options(heads=True)).first_fault
    assert (fault.layer, fault.step, fault.head) == (1, "q_heads", 4)


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (1.0, "fp16: fits;"),
        (1.5e4, "fits barely"),
        (1e6, "would overflow past 65504"),
        (math.nan, "not finite already"),
    ],
)
def test_a_forecast_of_float16_overflow(factor, words, tmp_path):
    weights = random_weights(TINY)
    weights["model.layers.1.mlp.down_proj.weight"] *= np.float32(factor)
    report = inspect(write_checkpoint(tmp_path, weights=weights), Options())
    assert words in forecast(report)
    if factor != 1:
        assert "layer 1, " in forecast(report)


def test_the_forecast_is_what_float16_does(tmp_path):
    """Twice the same stream, just below and just above what float16 holds."""
    ids = mx.array(np.random.default_rng(0).integers(0, TINY["vocab_size"], (1, 16)))
    from mlx_qwen3.model.load import load_model

    for factor, overflows in ((8e3, False), (6e4, True)):
        weights = random_weights(TINY)
        weights["model.layers.1.mlp.down_proj.weight"] *= np.float32(factor)
        folder = write_checkpoint(tmp_path / str(factor), weights=weights)
        assert ("overflow past" in forecast(inspect(folder, Options()))) == overflows
        assert mx.isfinite(load_model(folder, "fp16")(ids)).all().item() == (not overflows)


def test_rules_are_replaced_by_a_file(tmp_path):
    folder = write_checkpoint(tmp_path / "model")
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps({"quantities": {"v_heads": {"limit": {"std": [5, None]}}}}))
    report = inspect(folder, Options(rules=rules))
    assert (report.first_fault.layer, report.first_fault.step) == (0, "v_heads")
    assert "below 5 (collapse)" in report.first_fault.reasons[0]
    assert load_rules(rules).settings == load_rules().settings  # what the file leaves out keeps its default
    assert load_rules(rules).quantities.keys() == {"v_heads"}


def test_the_default_rules_are_a_rules_file():
    assert load_rules(DEFAULT) == load_rules()
    assert load_rules().quantities.keys() | {"entropy", "first_token"} == {step.name for step in NUMBERS}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "hold a list, not a JSON object"),
        ({"quantity": {}}, "'quantity' is no section"),
        ({"quantities": []}, "quantities is \\[\\]; expected an object"),
        ({"quantities": {"q": {}}}, "'q' is no quantity"),
        ({"quantities": {"v_heads": 3}}, "v_heads is 3; expected an object"),
        ({"quantities": {"v_heads": {"limits": {}}}}, "'limits' is no key of v_heads"),
        ({"quantities": {"v_heads": {"limit": {"median": [0, 1]}}}}, "'median' is no statistic"),
        ({"quantities": {"v_heads": {"limit": {"std": 3}}}}, "std is 3; expected \\[lowest, highest\\]"),
        ({"quantities": {"v_heads": {"limit": {"std": [2, 1]}}}}, "the lowest is above the highest"),
        ({"quantities": {"v_heads": {"limit": {"std": ["a", 1]}}}}, "expected \\[lowest, highest\\]"),
        ({"quantities": {"v_heads": {"unit": "v_norm"}}}, "unit of v_heads is 'v_norm'"),
        ({"outliers": {"z": "high"}}, "outliers.z is 'high'; expected a number"),
        ({"compare": {"1": 2}}, "'1' is no setting of compare"),
        ({"fp16": 3}, "fp16 is 3; expected an object"),
    ],
)
def test_a_bad_rules_file_is_refused_in_one_line(content, message, tmp_path):
    path = tmp_path / "rules.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UsageError, match=message) as error:
        load_rules(path)
    assert "\n" not in str(error.value)


def test_rules_that_do_not_exist(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        load_rules(tmp_path / "none.json")
