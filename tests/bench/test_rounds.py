"""How many rounds fit a minute, and what is said about the time."""

from dataclasses import dataclass

import pytest

from mlx_qwen3.bench.rounds import Clock, in_time


@dataclass
class Report:
    repeat: int | None = None
    rounds: int = 0


def run(took, repeat=None, before=0.0, after=0.0):
    """Rounds that take `took` seconds each, `before` seconds after the clock began."""
    now, said, kept = [0.0], [], []
    clock = Clock(said.append, lambda: now[0])
    clock.expect(60)
    report = Report(repeat)
    now[0] += before
    for _ in clock.rounds(report, lambda: kept.append((report.rounds, report.repeat)), after):
        now[0] += took
    return kept, said


@pytest.mark.parametrize(
    ("took", "before", "after", "number"),
    [
        (1, 0, 0, 5),  # never more
        (15, 0, 0, 4),
        (10, 25, 0, 3),
        (5, 25, 5, 3),
        (12, 50, 0, 2),  # not fewer, because one number has no spread
        (31, 0, 0, 1),  # unless a round takes more than half of a minute
        (600, 0, 0, 1),
    ],
)
def test_as_many_rounds_as_fit_a_minute(took, before, after, number):
    kept, _ = run(took, None, before, after)
    assert kept == [(done, number) for done in range(1, number + 1)]


def test_a_number_that_is_given_is_kept_however_long_it_takes():
    kept, said = run(100, repeat=3)
    assert kept == [(1, 3), (2, 3), (3, 3)]
    assert said == [
        "this takes about 60 s, by the sizes of the model and of what is asked",
        "round 1 of 3 is done, about 3 min left",
        "round 2 of 3 is done, about 2 min left",
    ]


def test_what_comes_after_the_rounds_is_time_too():
    assert run(20, repeat=2, after=5)[1][1:] == [
        "round 1 of 2 is done, about 30 s left",
        "round 2 of 2 is done, about 10 s left",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (45.4, "45 s"), (89, "89 s"), (91, "2 min"), (5000, "83 min"), (9000, "2 h")]
)
def test_times_in_words(seconds, words):
    assert in_time(seconds) == words
