"""Panics of the tokenizers library as errors; test_vocabulary.py has a real one."""

import os

import pytest

from mlx_qwen3.text.panic import PanicError, panics_as_errors


class PanicException(BaseException):
    """Has the name of the library's own class, which cannot be imported."""


def reported() -> None:
    os.write(2, b"thread '<unnamed>' panicked at ...\n")
    raise PanicException("too deep")


@pytest.mark.parametrize(("report", "shown"), [(True, "thread '<unnamed>' panicked at ...\n"), (False, "")])
def test_a_panic_is_an_error(report, shown, capfd):
    with pytest.raises(PanicError, match="too deep"), panics_as_errors(report):
        reported()
    assert capfd.readouterr().err == shown


@pytest.mark.parametrize("report", [True, False])
def test_without_a_panic_everything_is_shown(report, capfd):
    with panics_as_errors(report):
        os.write(2, b"a warning\n")
    assert capfd.readouterr().err == "a warning\n"


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
@pytest.mark.parametrize("report", [True, False])
def test_other_exceptions_stay_themselves(error, report, capfd):
    def fails() -> None:
        os.write(2, b"before it\n")
        raise error

    with pytest.raises(type(error)) as raised, panics_as_errors(report):
        fails()
    assert raised.value is error
    assert capfd.readouterr().err == "before it\n"


def test_a_process_without_standard_error():
    saved = os.dup(2)
    os.close(2)
    try:
        with pytest.raises(PanicError), panics_as_errors(report=False):
            raise PanicException("x")
    finally:
        os.dup2(saved, 2)
        os.close(saved)
