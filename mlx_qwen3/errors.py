"""Every error that a user can cause. Every message says what is wrong, gives the value, and names the remedy.

Qwen3Error              exit code 1
|- ConfigError          a setting in config.json or generation_config.json: missing, unknown, unsupported
|- CheckpointError      the files of a checkpoint: missing, truncated, contradictory
|- SourceError          a SOURCE that is not a folder, and that the Hub does not have
|- PromptError          a prompt or conversation that this model cannot take
|- OutputError          a file or folder that cannot be written
|- HealthError          a model computes NaN or infinity, or `inspect --strict` found a fault in it
|- EngineError          the engine is closed, or was closed before a reply was complete
|- MemoryBudgetError    weights or a request that do not fit the memory budget
|- BenchError           `bench`: a contestant failed, or ours is worse than the baseline allows
|- VerificationError    a conversion that is not what it should be: damaged, or further from its source than allowed
`- UsageError           options that contradict each other or the model; exit code 2

Qwen3Warning            what a user should know, but work continues; the commands print it as one line on stderr
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class Qwen3Error(Exception):
    """Base of all errors that come from the input and not from a bug."""

    exit_code = 1
    names_keys = False  # of a file; else a command shows its options in place of Python's arguments


@contextmanager
def found_in(place: str) -> Iterator[None]:
    """Errors of the block begin with the place in a file of the user's."""
    try:
        yield
    except Qwen3Error as error:
        placed = type(error)(f"{place}: {error}")
        placed.names_keys = True
        raise placed from None


class ConfigError(Qwen3Error):
    pass


class CheckpointError(Qwen3Error):
    pass


class SourceError(Qwen3Error):
    pass


class PromptError(Qwen3Error):
    pass


class OutputError(Qwen3Error):
    pass


class HealthError(Qwen3Error):
    pass


class EngineError(Qwen3Error):
    pass


class MemoryBudgetError(Qwen3Error):
    pass


class BenchError(Qwen3Error):
    pass


class VerificationError(Qwen3Error):
    pass


class UsageError(Qwen3Error):
    exit_code = 2


class Qwen3Warning(UserWarning):
    pass


def warn(message: str) -> None:
    """Warn once per message, by Python's own rules: `warnings.filterwarnings` can turn it off or into an error."""
    warnings.warn(message, Qwen3Warning, stacklevel=2)
