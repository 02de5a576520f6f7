"""From the engine's thread to the event loop."""

import asyncio

import pytest
from serving import wait_until

from mlx_qwen3 import Engine, ReplyOptions, SamplingParams, load
from mlx_qwen3.errors import MemoryBudgetError
from mlx_qwen3.server.replies import Bell, Mailbox, Replies


@pytest.fixture(scope="module")
def engine():
    with Engine(*load("demo", dtype="fp32")) as engine:
        yield engine


def requests(engine, count, **options):
    options = {"sampling": SamplingParams(0), **options}
    return [engine.prepare("What is 17 + 25?", ReplyOptions(**options)) for _ in range(count)]


async def gathered(replies):
    found = []
    while replies.open:
        found += await replies.next(30)
    return found


def test_they_are_those_of_the_iteration_with_the_time_of_each(engine):
    expected = [chunk.token for chunk in engine.submit(*requests(engine, 1))]

    async def run():
        return await gathered(Replies(Mailbox(), engine, requests(engine, 3)))

    heard = asyncio.run(run())
    for index in range(3):
        mine = [(chunk, moment) for place, chunk, moment in heard if place == index]
        assert [chunk.token for chunk, _ in mine] == expected
        assert [moment for _, moment in mine] == sorted(moment for _, moment in mine)


def test_closing_frees_the_rows(engine):
    async def run():
        replies = Replies(Mailbox(), engine, requests(engine, 2, sampling=SamplingParams(5.0, 0, 1.0), max_tokens=2000))
        await replies.next(30)
        replies.close()
        await gathered(replies)
        expected = Replies(Mailbox(), engine, requests(engine, 1))
        await gathered(expected)

    asyncio.run(run())
    wait_until(lambda: engine.load.running == 0)  # a row leaves at the end of its last step


def test_a_while_without_news_gives_an_empty_list(engine):
    async def run():
        replies = Replies(Mailbox(), engine, requests(engine, 1))
        await gathered(replies)
        return await replies.next(0.01)

    assert asyncio.run(run()) == []


def test_if_one_is_refused_none_is_left_behind():
    with Engine(*load("demo", dtype="fp32"), memory="40MB") as small:
        fits, large = (requests(small, 1, max_tokens=count)[0] for count in (5, 4000))

        async def run():
            with pytest.raises(MemoryBudgetError):
                Replies(Mailbox(), small, [fits, large])

        asyncio.run(run())
        list(small.submit(fits))
        wait_until(lambda: small.load.running == 0)


def test_an_engine_that_speaks_after_the_loop_has_ended_goes_on(engine):
    async def run():
        Replies(Mailbox(), engine, requests(engine, 1))

    asyncio.run(run())
    assert list(engine.submit(*requests(engine, 1)))
    assert engine.alive


def test_the_loop_is_called_once_for_all_that_is_said_before_it_runs():
    async def run():
        loop, calls = asyncio.get_running_loop(), []
        mailbox = Mailbox()
        loop.call_soon_threadsafe, call = (lambda *a: (calls.append(a), call(*a))), loop.call_soon_threadsafe
        events = [asyncio.Event() for _ in range(3)]
        for event in events:
            mailbox.put(event)
        assert len(calls) == 1
        async with asyncio.timeout(30):
            for event in events:
                await event.wait()
        late = asyncio.Event()
        mailbox.put(late)
        assert len(calls) == 2
        async with asyncio.timeout(30):
            await late.wait()

    asyncio.run(run())


def test_a_bell_rings_when_it_is_set_or_when_the_time_is_over():
    async def run():
        loop, bell, waits = asyncio.get_running_loop(), Bell(), []
        for timeout, set_after in ((60, 0.01), (0.02, None), (60, 0.01), (0.03, None)):
            began = loop.time()
            if set_after is not None:
                loop.call_later(set_after, bell.event.set)
            await bell.wait(timeout)
            bell.event.clear()
            waits.append(loop.time() - began)
        bell.stop()
        return waits

    first, second, third, fourth = asyncio.run(run())
    assert first < 30 > third  # not its 60 seconds
    assert 0.02 <= second + 0.001 < 30  # the loop rounds times to its clock's resolution
    assert 0.03 <= fourth + 0.001 < 30


def test_a_bell_sets_no_clock_for_each_wait():
    async def run():
        bell, clocks = Bell(), []
        loop = asyncio.get_running_loop()
        loop.call_at, call_at = (lambda *a: clocks.append(a) or call_at(*a)), loop.call_at
        for _ in range(100):
            loop.call_soon(bell.event.set)
            await bell.wait(60)
            bell.event.clear()
        bell.stop()
        return len(clocks)

    assert asyncio.run(run()) == 1
