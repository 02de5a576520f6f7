"""A server under people as they are: who leaves, reads slowly, sends nonsense or nothing, or stops in the middle.

Slow: it makes some thousand requests.
"""

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from commands import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc"),
]
QUESTIONS = ("What is 17 + 25?", "hello", "Sort: 9 4 7", "What is the capital of France?")
CLIENTS, WARM_UP, REQUESTS = 200, 400, 2000
NONSENSE = (b"{", b"[]", b'{"messages": 3}', b"\xff\xfe", b'{"messages":[{"role":"user"}],"n":"x"}')


class Crowd:
    """Clients of a port. `served` counts whole answers, `others` those that were not to have one."""

    def __init__(self, port, seed):
        self.port, self.rng = port, random.Random(seed)
        self.served = self.others = self.full = 0
        self.wrong = []

    async def run(self, requests, clients=CLIENTS):
        self._left, start = requests, time.perf_counter()
        async with asyncio.timeout(600):
            await asyncio.gather(*[self._client() for _ in range(clients)])
        print(f"{requests} requests in {time.perf_counter() - start:.1f} s")

    async def _client(self):
        while self._left > 0:
            self._left -= 1
            kind = self.rng.choices(["whole", "leaves", "nonsense", "slow", "silent"], [60, 30, 4, 4, 2])[0]
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**20)
            try:
                await getattr(self, f"_{kind}")(reader, writer)
            finally:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()

    async def _whole(self, reader, writer):
        stream = self.rng.random() < 0.5
        self._send(writer, self._asked(stream=stream))
        self._judge(await reader.read(), stream)

    async def _slow(self, reader, writer):
        self._send(writer, self._asked(stream=True))
        text = b""
        while part := await reader.read(200):
            text += part
            await asyncio.sleep(0.005)
        self._judge(text, True)

    async def _leaves(self, reader, writer):
        self._send(writer, self._asked(stream=self.rng.random() < 0.7, max_tokens=400))
        with suppress(TimeoutError):
            async with asyncio.timeout(self.rng.random() * 0.1):
                await reader.read(self.rng.randint(1, 2000))
        self.others += 1
        if self.rng.random() < 0.5:
            writer.transport.abort()

    async def _nonsense(self, reader, writer):
        self._send(writer, self.rng.choice(NONSENSE))
        text = await reader.read()
        if b" 400 " not in text.split(b"\r\n")[0]:
            self.wrong.append(text[:200])
        self.others += 1

    async def _silent(self, reader, writer):
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Le")
        await asyncio.sleep(self.rng.random() * 0.2)
        self.others += 1

    def _asked(self, **more):
        messages = [{"role": "user", "content": self.rng.choice(QUESTIONS)}]
        return json.dumps({"messages": messages, "max_tokens": self.rng.randint(1, 6), **more}).encode()

    def _send(self, writer, body):
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)

    def _judge(self, text, stream):
        status = text.split(b"\r\n")[0]
        if b" 429 " in status:
            self.full += 1
        elif b" 200 " in status and (b"data: [DONE]" in text if stream else b'"finish_reason"' in text):
            self.served += 1
        else:
            self.wrong.append(text[:300])


def resident(process):
    """Bytes of memory that a process has."""
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def metric(port, name):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    return int(re.search(rf"^mlx_qwen3_{name} (\d+)$", text, re.MULTILINE)[1])


async def quiet(port):
    """Wait until no reply runs or waits."""
    async with asyncio.timeout(60):
        while await metric(port, "running_replies") or await metric(port, "queue_replies"):
            await asyncio.sleep(0.05)


@pytest.fixture
def served(tmp_path):
    words = [sys.executable, "-m", "mlx_qwen3", "serve", "demo", "--port", "0", "--queue", "500", "--timeout", "90s"]
    log = tmp_path / "log"
    with log.open("w") as out:
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=out)
    try:
        while not (match := re.search(r"listening on http://127.0.0.1:(\d+)", log.read_text())):
            assert process.poll() is None
        yield process, int(match[1]), log
    finally:
        process.kill()
        process.wait()


def test_nobody_waits_for_ever_and_nothing_is_kept(served):
    process, port, log = served

    async def run():
        crowd = Crowd(port, 1)
        await crowd.run(WARM_UP)
        await quiet(port)
        before = resident(process)
        await crowd.run(REQUESTS)
        await quiet(port)
        after = resident(process)
        # The whole process stands still for a moment, as in a suspended container, with requests under way.
        crowding = asyncio.create_task(crowd.run(60, 60))
        await asyncio.sleep(0.2)
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(1)
        process.send_signal(signal.SIGCONT)
        await crowding
        await quiet(port)
        return crowd, before, after

    crowd, before, after = asyncio.run(run())
    print(f"{before / 1e6:.0f} MB, {after / 1e6:.0f} MB after {REQUESTS} requests; {crowd.served} served")
    assert crowd.wrong == []
    assert crowd.full == 0
    assert crowd.served > 0.5 * (WARM_UP + REQUESTS)
    assert crowd.served + crowd.others == WARM_UP + REQUESTS + 60
    assert after - before < 40e6, f"{before / 1e6:.0f} MB became {after / 1e6:.0f}"  # measured 9
    descriptors = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
    assert descriptors < 60
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert "Traceback" not in log.read_text()
