"""The servers that are measured: starts each in a process of its own, waits until it answers, ends it."""

import http.client
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ..errors import BenchError, UsageError
from .options import OURS, Contestant
from .process import Child

START = 300  # seconds that a server has to load its model and answer
POLL = 0.05  # seconds between two looks


@dataclass(frozen=True)
class Kind:
    """`module` of workers/ starts it; `arguments` are those of its command line but folder and port."""

    module: str
    packages: tuple[str, ...]
    install: str
    arguments: Callable[[Contestant, int], list[str]]
    folder: str  # the argument before the folder


def _ours(contestant: Contestant, rows: int) -> list[str]:
    dtype = ["--dtype", contestant.dtype] if contestant.dtype else []
    weights = ["--weights", contestant.weights] if contestant.weights else []
    return ["serve", "--rows", str(rows), "--queue", str(4 * rows), *dtype, *weights]


def _mlx_lm(contestant: Contestant, rows: int) -> list[str]:
    return [contestant.dtype_name or "", "--log-level", "WARNING"]


NEEDED = ("starlette", "uvicorn", "msgspec", "llguidance")
SERVERS = {
    OURS: Kind("our_server", NEEDED, "'mlx-qwen3[server]'", _ours, "--"),
    "mlx-lm": Kind("peer_mlx_lm_server", ("mlx_lm",), "mlx-lm", _mlx_lm, "--model"),
}


def check(contestants: Sequence[Contestant]) -> None:
    """Raises UsageError for one that has no server here, or whose server lacks a package."""
    for contestant in contestants:
        kind = SERVERS.get(base(contestant))
        if kind is None:
            known = " and ".join(SERVERS)
            raise UsageError(f"--against has {contestant.name!r}; --serve measures the servers of {known}")
        if missing := next((package for package in kind.packages if find_spec(package) is None), None):
            raise UsageError(f"--serve needs the package {missing} for {contestant.name}; pip install {kind.install}")


def base(contestant: Contestant) -> str:
    return contestant.name.split(":")[0]


class Server(Child):
    """A server, and the port that it listens on."""

    def __init__(self, contestant: Contestant, folder: Path, rows: int):
        self.port = _free_port()
        kind = SERVERS[base(contestant)]
        arguments = [*kind.arguments(contestant, rows), "--port", str(self.port), kind.folder, str(folder.absolute())]
        super().__init__(contestant.name, "listen", kind.module, contestant.blas, *arguments, answers=False)

    def ready(self) -> None:
        """Until /health is 200. Raises BenchError with the server's last words."""
        until = time.monotonic() + START
        while not self._healthy():
            code = self._process.poll()
            if code is not None:
                raise BenchError(f"the server of {self.name} ended with code {code}: {self.last_words()}")
            if time.monotonic() > until:
                raise BenchError(f"the server of {self.name} did not answer in {START} s: {self.last_words()}")
            time.sleep(POLL)

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START)
        with closing(connection), suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/health")
            with closing(connection.getresponse()) as response:  # it holds the socket if the server closes it
                return response.status == 200
        return False


def _free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port: int = chosen.getsockname()[1]
        return port
