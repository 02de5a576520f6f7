"""The progress of long work, in one form for every function that reports it and every bar that shows it."""

from collections.abc import Callable
from dataclasses import dataclass

BYTES = "bytes"


@dataclass(frozen=True)
class Stage:
    """The name of the work, its total amount, and the unit: bytes, or a plural noun such as layers.

    The total is an estimate if some of the work may be done twice.
    """

    name: str
    total: int
    unit: str


Progress = Callable[[Stage, int], None]  # called with the stage, and how much of it was just done


def silent(stage: Stage, done: int) -> None:
    """Shows nothing."""
