"""The table of steps."""

import pytest

from mlx_qwen3.compare.flow import ENTROPY, EVENTS, FIRST_TOKEN, FLOW, HIDDEN, NUMBERS, Step


def test_every_step_has_a_name_of_its_own():
    names = [step.name for step in (*FLOW, ENTROPY, FIRST_TOKEN)]
    assert len(set(names)) == len(names)
    shown = [step for steps in EVENTS.values() for step in steps]
    assert set(FLOW) == {*shown, *HIDDEN}
    assert {*NUMBERS} == {step for step in FLOW if not step.view} | {ENTROPY, FIRST_TOKEN}


@pytest.mark.parametrize(
    ("axes", "heads", "tokens"),
    [("B L hidden", None, 1), ("B L H D", 2, 1), ("B K L D", 1, 2), ("B K S D", 1, -1), ("B H L S", 1, 2)],
)
def test_axes_are_found_by_their_letter(axes, heads, tokens):
    step = Step("x", axes, "")
    assert (step.head_axis, step.token_axis) == (heads, tokens)
