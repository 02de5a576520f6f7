"""The classes of errors: one root, exit codes, and a list of them that is complete."""

import re

from mlx_qwen3 import errors


def test_every_error_has_the_root_and_an_exit_code():
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    raised = [error for error in classes if not issubclass(error, Warning)]
    assert len(raised) > 8
    for error in raised:
        assert issubclass(error, errors.Qwen3Error)
        assert error.exit_code == (2 if issubclass(error, errors.UsageError) else 1)


def test_the_list_in_the_module_is_complete():
    classes = {name for name, value in vars(errors).items() if isinstance(value, type)}
    listed = set(re.findall(r"\b\w+(?:Error|Warning)\b", errors.__doc__))
    assert {name for name in classes if name.endswith(("Error", "Warning"))} == listed
