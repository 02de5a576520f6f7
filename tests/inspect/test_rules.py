"""Verdicts at their limits, and rules from a file."""

import json
import math

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import write_checkpoint

from mlx_qwen3.compare import bounds
from mlx_qwen3.compare.flow import NUMBERS
from mlx_qwen3.errors import UsageError
from mlx_qwen3.inspect import Options, inspect, load_rules
from mlx_qwen3.inspect.rules import ABNORMAL, DEFAULT, NORMAL, UNUSUAL, judge
from mlx_qwen3.inspect.statistics import summarize


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
        ({"std": 4.5}, UNUSUAL, None),
        ({"mean": 2}, UNUSUAL, None),
        ({"peak": 60}, UNUSUAL, None),
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
    ("name", "reason"),
    [("q_norm", "std 4.5 above 2"), ("k_rope", "std 4.5 above 2"), ("q_heads", "std 4.5 above 4")],
)
def test_what_has_a_norm_is_judged_more_strictly(name, reason):
    assert judge(name, filled(std=4.5), load_rules(), {}).reasons == (reason,)


@pytest.mark.parametrize(
    ("changes", "level", "word"),
    [
        ({}, NORMAL, None),
        ({"peak": 5.5}, NORMAL, None),
        ({"peak": 60}, UNUSUAL, "|value| 60 above 20"),
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
        ({"quantity": {}}, "'quantity' is not a section"),
        ({"quantities": []}, "quantities is \\[\\]; expected an object"),
        ({"quantities": {"q": {}}}, "'q' is not a quantity"),
        ({"quantities": {"v_heads": 3}}, "v_heads is 3; expected an object"),
        ({"quantities": {"v_heads": {"limits": {}}}}, "'limits' is not a key of v_heads"),
        ({"quantities": {"v_heads": {"limit": {"median": [0, 1]}}}}, "'median' is not a statistic"),
        ({"quantities": {"v_heads": {"limit": {"std": 3}}}}, "std is 3; expected \\[lowest, highest\\]"),
        ({"quantities": {"v_heads": {"limit": {"std": [2, 1]}}}}, "the lowest is above the highest"),
        ({"quantities": {"v_heads": {"limit": {"std": ["a", 1]}}}}, "expected \\[lowest, highest\\]"),
        ({"quantities": {"v_heads": {"unit": "v_norm"}}}, "unit of v_heads is 'v_norm'"),
        ({"outliers": {"z": "high"}}, "outliers.z is 'high'; expected a number"),
        ({"compare": {"1": 2}}, "'1' is not a setting of compare"),
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


def test_bounds_of_comparisons_are_those_of_the_package_or_the_files(tmp_path):
    default = load_rules().settings["compare"]
    assert default == {name: bound.limit for name, bound in bounds.STEPS.items()} | {"growth": bounds.GROWTH.limit}
    (tmp_path / "rules.json").write_text(json.dumps({"compare": {"float32": 1e-3}}))
    assert load_rules(tmp_path / "rules.json").settings["compare"] == default | {"float32": 1e-3}
