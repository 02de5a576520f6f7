"""The rounds of a measurement: how many, how long they take, and what is said about it.

Everything is measured once in each round, so a run that is stopped keeps its complete rounds.
"""

import time
from collections.abc import Callable, Iterator
from typing import Protocol

BUDGET = 60.0  # seconds that a run takes by default, about
FEWEST, MOST = 2, 5  # rounds by default; a single one if it takes more than half of BUDGET
Tell = Callable[[str], None]  # shows a line to the user


class Measured(Protocol):
    """A report that grows. `rounds` are complete; `repeat` is how many there will be, None until it is known."""

    rounds: int
    repeat: int | None


def untold(text: str) -> None:
    """Tells nobody."""


class Clock:
    """Counts rounds, and says how long the rest takes."""

    def __init__(self, tell: Tell, now: Callable[[], float] = time.monotonic):
        self._tell, self._now = tell, now
        self._began = now()

    def rounds(self, report: Measured, keep: Callable[[], None], after: float = 0.0) -> Iterator[int]:
        """The numbers of the rounds, from 1; `keep` is called when one is complete.

        If the report has no number of repeats, the first round decides: as many as fit BUDGET. `after`: seconds that
        each needs once more when all rounds are done.
        """
        while report.repeat is None or report.rounds < report.repeat:
            began = self._now()
            yield report.rounds + 1
            ended = self._now()
            took = ended - began + after
            report.rounds += 1
            if report.repeat is None:
                fitting = 1 + int((BUDGET - after - (ended - self._began)) / took)
                report.repeat = min(max(fitting, FEWEST if took < BUDGET / 2 else 1), MOST)
            keep()
            left = (report.repeat - report.rounds) * took + report.rounds * after
            if left >= 1:
                self._tell(f"round {report.rounds} of {report.repeat} is done, about {in_time(left)} left")

    def left(self) -> float:
        """Seconds of BUDGET."""
        return BUDGET - (self._now() - self._began)

    def expect(self, seconds: float) -> None:
        """Say beforehand how long it will take."""
        self._tell(f"this takes about {in_time(seconds)}, by the sizes of the model and of what is asked")


def in_time(seconds: float) -> str:
    """In two digits at most: 45 s, 3 min, 2 h."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 1):.0f} s"


def round_name(number: int, repeat: int | None) -> str:
    return f"round {number} of {repeat}" if repeat else f"round {number}"
