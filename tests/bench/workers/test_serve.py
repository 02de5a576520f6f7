"""What a contestant's process answers, with an engine that computes nothing."""

import numpy as np
import pytest

from mlx_qwen3.bench.workers import serve


class Engine:
    host_time = True

    def generate(self, ids, count, emit):
        for token in range(count):
            emit(ids[-1] + token)

    def batch(self, prompts, count, emit):
        """A row begins in each step; the rows end in the order in which they began."""
        for step in range(count + len(prompts) - 1):
            for row, ids in enumerate(prompts):
                if row <= step < row + count:
                    emit(row, ids[-1] + step - row)

    def sampler(self, logits):
        return lambda: int(np.argsort(-logits[0])[5])

    def logits(self, ids, last):
        return np.full((last, 3), len(ids), np.float32)

    def reset_peak(self):
        pass

    def peak(self):
        return 9


def test_a_reply_has_a_time_for_every_token():
    answer = serve.generate(Engine(), [3, 4], 5)
    assert answer["tokens"] == [4, 5, 6, 7, 8]
    assert answer["seconds"] == sorted(answer["seconds"])
    assert len(answer["seconds"]) == 5
    assert answer["host_s"] >= 0
    assert (answer["framework_peak_bytes"], answer["peak_bytes"] > 10**6) == (9, True)


def test_many_replies_are_timed_as_long_as_all_run(monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr(serve.time, "perf_counter", lambda: next(ticks))  # a second for each token
    answer = serve.batch(Engine(), [[10], [20], [30]], 5)
    assert answer == {"tokens": [[10, 11, 12, 13, 14], [20, 21, 22, 23, 24], [30, 31, 32, 33, 34]], "tps": 1.0}
    times = iter([0, 1, 1, 2, 2, 2, *[3] * 3, *[4] * 3, *[5] * 3, *[6] * 3, *[7] * 3, *[8] * 3, 9, 9, 10])
    monkeypatch.setattr(serve.time, "perf_counter", lambda: next(times))
    assert serve.batch(Engine(), [[10], [20], [30]], 5)["tps"] == 3.0, "the steps of three rows, of a second each"


@pytest.mark.parametrize(("host_time", "count"), [(False, 5), (True, 1)])
def test_no_host_time_of_one_token_or_of_a_thread_that_computes(host_time, count):
    engine = Engine()
    engine.host_time = host_time
    assert serve.generate(engine, [3], count)["host_s"] is None


def test_draws_are_timed_and_their_worst_rank_is_reported(monkeypatch):
    monkeypatch.setattr(serve, "SAMPLED", (1, 100))
    answer = serve.sampling(Engine(), 7)
    assert (len(answer["seconds"]), answer["worst_rank"]) == (7, 5)
    monkeypatch.setattr(Engine, "sampler", lambda self, logits: None)
    assert serve.sampling(Engine(), 7) == {"seconds": [], "worst_rank": None}


def test_logits_go_through_a_file(tmp_path):
    assert serve.logits(Engine(), [1, 2, 3, 4], 2, str(tmp_path / "x.npy")) == {}
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), np.full((2, 3), 4))
