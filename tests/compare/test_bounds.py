"""Every tolerance says what it measures and allows more than correct models need. Some are measured again."""

import comparing
import mlx.core as mx
import pytest
from checkpoints import PACKABLE, write_checkpoint, write_packed

from mlx_qwen3.compare import bounds
from mlx_qwen3.compare.bounds import STEPS, Bound, packings, step_bound
from mlx_qwen3.compare.comparison import differences
from mlx_qwen3.compare.steps import model_steps
from mlx_qwen3.model.load import load_model

NINE = {**comparing.NINE, **PACKABLE}
FOUND = {
    f"{name} {key}".strip(): bound
    for name, value in vars(bounds).items()
    if name.isupper()
    for key, bound in (value.items() if isinstance(value, dict) else [("", value)])
    if isinstance(bound, Bound)
}


@pytest.mark.parametrize("bound", FOUND.values(), ids=FOUND.keys())
def test_a_bound_says_what_it_is_based_on(bound):
    assert bound.measures
    assert bound.on
    assert 0 <= bound.measured < bound.limit


def test_a_coarser_form_is_allowed_more():
    for names in (["float32", "float16", "bfloat16"], ["8", "6", "5", "4", "3", "2"]):
        for table in (STEPS, bounds.ROUNDED, bounds.OUTPUTS):
            limits = [table[name].limit for name in names if name in table]
            assert limits == sorted(limits)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("plain"), NINE)


def added(ours, theirs, ids):
    """The largest difference that a layer adds to one of its steps."""
    sides = model_steps(ours, mx.array(ids)), model_steps(theirs, mx.array(ids))
    return max(d.relative - d.bound for d in differences(*sides, bound=0.0, growth=bounds.GROWTH.limit))


FORMS = {
    "float16": "fp16",
    "bfloat16": "bf16",
    **{str(bits): {"mode": "affine", "bits": bits, "group_size": 64} for bits in (8, 6, 5, 4, 3, 2)},
    "mxfp8": {"mode": "mxfp8", "bits": 8, "group_size": 32},
    "mxfp4": {"mode": "mxfp4", "bits": 4, "group_size": 32},
    "nvfp4": {"mode": "nvfp4", "bits": 4, "group_size": 16},
}


@pytest.mark.parametrize(("name", "form"), FORMS.items(), ids=FORMS.keys())
def test_what_was_measured_is_measured_again(name, form, plain, ids, tmp_path):
    """9 random layers here; the figures in the table are of more layers, or of other sizes, and a little larger."""
    if isinstance(form, str):
        model = load_model(plain, form)
    else:
        model = load_model(write_packed(tmp_path, form, **NINE), "fp32")
        assert packings(model) == {name}
    found = added(model, load_model(plain, "fp32"), ids)
    assert 0.7 * STEPS[name].measured < found < 1.1 * STEPS[name].measured


def test_the_bound_of_two_models_is_that_of_the_coarser(plain, tmp_path):
    limits = {name: bound.limit for name, bound in STEPS.items()}
    fine, half = load_model(plain, "fp32"), load_model(plain, "bf16")
    packed = load_model(write_packed(tmp_path, FORMS["4"], **NINE), "fp32")
    assert step_bound(limits, fine, fine) == limits["float32"]
    assert step_bound(limits, fine, half) == limits["bfloat16"]
    assert step_bound(limits, packed, half) == limits["4"]
    assert step_bound(limits, packed, same_weights=True) == limits["float32"]
