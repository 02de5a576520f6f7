"""What the measurement of servers found, and the figures that are computed from it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from ..errors import UsageError
from ..files.config import Qwen3Config
from .clients import percentile
from .options import Options

MOST_CLIENTS = 64
ALIKE = 0.9  # of the replies must be equal if both compute in float32; a near tie may part a few
LENGTHS = 0.05  # by which the numbers of tokens may differ


@dataclass(frozen=True)
class Serving:
    """`options` as of every measurement; `clients`: how many ask at once."""

    options: Options
    clients: tuple[int, ...] = (1, 8)

    def __post_init__(self) -> None:
        """Raises UsageError."""
        wrong = [number for number in self.clients if not 1 <= number <= MOST_CLIENTS]
        if wrong or len(set(self.clients)) < len(self.clients):
            given = ",".join(map(str, self.clients))
            raise UsageError(
                f"--clients is {given!r}; expected different numbers from 1 to {MOST_CLIENTS}, such as 1,8"
            )


@dataclass(frozen=True)
class Load:
    """One run of one mix: times in seconds, `first_s` one for each request."""

    mix: str
    clients: int
    seconds: float
    tokens: int
    prompt_tokens: int
    cached_tokens: int
    first_s: list[float]
    texts: list[str]
    retries: int = 0  # connections that the server reset, after which the client tried again

    @property
    def tps(self) -> float:
        """Tokens of all replies per second."""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Arrival:
    """A prompt that came while a reply ran: the gaps of the reply, and the first token of the prompt, in seconds."""

    gaps_s: list[float]
    first_s: float
    prompt_tokens: int


@dataclass
class Row:
    """One server."""

    name: str
    dtype: str
    blas: str
    loads: list[Load] = field(default_factory=list)
    arrivals: list[Arrival] = field(default_factory=list)

    def at(self, mix: str, number: int) -> list[Load]:
        return [load for load in self.loads if (load.mix, load.clients) == (mix, number)]


@dataclass
class Report:
    serving: Serving
    config: Qwen3Config
    machine: dict[str, str]
    rows: list[Row]
    repeat: int | None = None  # rounds; None until it is known
    rounds: int = 0  # that are complete
    complete: bool = False
    words_only: bool = False  # the replies were bound to some words, because the model's own show no text

    @property
    def ours(self) -> Row:
        return self.rows[0]


@dataclass(frozen=True)
class Comparison:
    """How the replies of a server compare with ours: `equal` of `replies`, and the tokens of both."""

    equal: int
    replies: int
    tokens: int
    ours: int
    strict: bool  # both in float32

    @property
    def agree(self) -> bool:
        """Whether the work was the same, so that times can be compared."""
        alike = not self.strict or self.equal >= ALIKE * self.replies
        return alike and abs(self.tokens - self.ours) <= LENGTHS * self.ours


def figures(loads: Sequence[Load]) -> dict[str, float]:
    """The median speed of the repeats, and the first token over the requests of all repeats."""
    first = [seconds for load in loads for seconds in load.first_s]
    return {
        "tps": median(load.tps for load in loads),
        "first_p50_ms": 1e3 * percentile(first, 0.5),
        "first_p95_ms": 1e3 * percentile(first, 0.95),
    }


def arrival_figures(arrivals: Sequence[Arrival]) -> dict[str, float]:
    """Medians over the repeats of the longest gap, of the 95th percentile of gaps, and of the first token."""
    return {
        "longest_ms": 1e3 * median(max(arrival.gaps_s) for arrival in arrivals),
        "gap_p95_ms": 1e3 * median(percentile(arrival.gaps_s, 0.95) for arrival in arrivals),
        "first_ms": 1e3 * median(arrival.first_s for arrival in arrivals),
    }


def compare(ours: Row, row: Row, mix: str, number: int) -> Comparison:
    """The replies of two servers in all repeats of one mix."""
    pairs = list(zip(ours.at(mix, number), row.at(mix, number), strict=True))
    texts = [pair for a, b in pairs for pair in zip(a.texts, b.texts, strict=True)]
    return Comparison(
        equal=sum(a == b for a, b in texts),
        replies=len(texts),
        tokens=sum(b.tokens for _, b in pairs),
        ours=sum(a.tokens for a, _ in pairs),
        strict={ours.dtype, row.dtype} == {"float32"},
    )
