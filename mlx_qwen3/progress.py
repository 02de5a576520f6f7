"""The progress of long work: one form for every function that reports it, and for whoever shows it."""

from collections.abc import Callable
from dataclasses import dataclass

BYTES = "bytes"


@dataclass(frozen=True)
class Stage:
    """What is going on, how much of it there is, and in which unit: bytes, or things by their plural, such as layers.

    The total is an estimate if some of the work may be done twice.
    """

    name: str
    total: int
    unit: str


Progress = Callable[[Stage, int], None]  # is told the stage, and how much of it was just done


def silent(stage: Stage, done: int) -> None:
    """Shows nothing."""
