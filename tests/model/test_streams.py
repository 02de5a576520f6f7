"""Two streams in the block, and one outside, of this thread and of others."""

import threading

import mlx.core as mx
import pytest

from mlx_qwen3.model import streams


def test_two_streams_in_the_block_only():
    default = mx.default_stream(mx.default_device())
    assert streams.current() == [default]
    with streams.side_by_side() as two:
        assert list(streams.current()) == list(two)
        assert two[0] == default != two[1]
    with pytest.raises(KeyError), streams.side_by_side():
        raise KeyError
    assert streams.current() == [default]


def test_every_thread_has_its_own():
    found = []

    def other():
        found.append(len(streams.current()))
        with streams.side_by_side() as two:
            with mx.stream(two[1]):
                result = mx.ones((3,)) + 1
            found.append(result.tolist())  # MLX refuses the stream of another thread

    with streams.side_by_side():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert found == [1, [2, 2, 2]]
