"""The errors of a certificate, measured again."""

from dataclasses import replace

import mlx.core as mx
import pytest
from quantizing import MOE, source_in
from releases import write_awq, write_fp8

from mlx_qwen3.conversion.certificate import Certificate
from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.conversion.remeasure import check_errors
from mlx_qwen3.conversion.verify import report, verify
from mlx_qwen3.errors import VerificationError
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.progress import silent
from mlx_qwen3.table import Line


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return source_in(tmp_path_factory.mktemp("source"), mx.bfloat16, **MOE)


def checked(source, out, **options):
    """(certificate, how many of its errors were measured again)"""
    certificate = convert(source, out, divergence=False, **options)
    return certificate, check_errors(Checkpoint(out), Checkpoint(source), certificate, silent)


@pytest.mark.parametrize("spec", ["affine4", "affine8g32", "mxfp4", "mxfp8", "nvfp4", "mixed"])
@pytest.mark.parametrize("layout", ["hf", "native"])
def test_what_was_certified_is_found_again(source, spec, layout, tmp_path):
    certificate, count = checked(source, tmp_path / "out", quantize=spec, layout=layout)
    assert count == sum(record.error is not None for record in certificate.tensors) == (24 if layout == "hf" else 15)
    stacks = [record for record in certificate.tensors if record.error and len(record.shape) == 3]
    assert {len(record.error.experts) for record in stacks} == {7}


def test_casts_norms_and_unpacked_experts_too(source, tmp_path):
    certificate, count = checked(source, tmp_path / "fp16", dtype="fp16")
    assert count == len(certificate.tensors)
    convert(source, tmp_path / "packed", quantize="affine4", divergence=False)
    certificate, count = checked(tmp_path / "packed", tmp_path / "out", quantize="none", layout="hf")
    assert count == sum(record.error is not None for record in certificate.tensors) > 50


@pytest.mark.parametrize(("write", "options"), [(write_fp8, {"quantize": "affine4g32"}), (write_awq, {})])
def test_releases_are_measured_against_their_values(write, options, tmp_path):
    release = write(tmp_path / "release")
    certificate, count = checked(release.folder, tmp_path / "out", **options)
    assert count == sum(record.error is not None for record in certificate.tensors) > 0


@pytest.mark.parametrize(
    ("figure", "message"),
    [
        ({"experts": (0.1,) * 7}, "the error of expert 0 is 0.*, certificate.json says 0.1; convert again"),
        ({"relative": 0.2}, "the relative error is 0.*, certificate.json says 0.2"),
        ({"max": 3.0}, "the largest difference is"),
        ({"worst_row_relative": 0.0}, "the error of the worst row is"),
        ({"experts": (0.1,)}, "has 7 experts, certificate.json says 1"),
    ],
)
def test_another_error_is_named(source, figure, message, tmp_path):
    out = tmp_path / "out"
    certificate = convert(source, out, quantize="affine4", divergence=False)
    name = "model.layers.2.mlp.switch_mlp.up_proj.weight"
    forged = [replace(r, error=replace(r.error, **figure)) if r.name == name else r for r in certificate.tensors]
    replace(certificate, tensors=tuple(forged)).write(out)
    with pytest.raises(VerificationError, match=f"switch_mlp.up_proj.weight:? {message}"):
        verify(out, source)


def test_verify_says_how_many(source, tmp_path):
    convert(source, tmp_path / "out", quantize="affine4", divergence=False)
    verification = verify(tmp_path / "out", source)
    assert verification.errors == 24
    assert Line("the errors of 24 tensors, measured again, are as certified") in report(verification)
    assert verify(tmp_path / "out").errors == 0


def test_a_certificate_without_errors_of_experts_is_read(source, tmp_path):
    """As the first ones were: then only what it has is compared."""
    out = tmp_path / "out"
    certificate = convert(source, out, quantize="affine4", divergence=False)
    records = [replace(r, error=replace(r.error, experts=())) if r.error else r for r in certificate.tensors]
    replace(certificate, tensors=tuple(records), groups={}).write(out)
    assert Certificate.read(out).groups == {}
    assert verify(out, source).errors == 24
