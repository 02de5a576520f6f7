"""Counts and times of the server, as Prometheus reads them."""

import bisect
import json
from collections import Counter
from collections.abc import Iterable, Mapping

import mlx.core as mx

from ..model.cache import idle_bytes

PREFIX = "mlx_qwen3_"
FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BETWEEN = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
WHOLE = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Histogram:
    def __init__(self, bounds: tuple[float, ...]):
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str) -> Iterable[str]:
        total = 0
        for bound, count in zip((*map(repr, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._sum}"
        yield f"{name}_count {total}"


HELP = {
    "requests_total": ("counter", "Requests by endpoint and status."),
    "replies_total": ("counter", "Replies that were begun, by model."),
    "prompt_tokens_total": ("counter", "Tokens of prompts."),
    "cached_tokens_total": ("counter", "Tokens of prompts that earlier prompts began with, and were not computed."),
    "generated_tokens_total": ("counter", "Tokens of replies."),
    "prefix_queries_total": ("counter", "Prompts that were looked up among the prefixes."),
    "prefix_hits_total": ("counter", "Prompts of which a prefix was found."),
    "replies_cancelled_total": ("counter", "Replies whose client left."),
    "queue_replies": ("gauge", "Replies that have no token yet."),
    "running_replies": ("gauge", "Replies that get a token at each step."),
    "prefix_bytes": ("gauge", "Bytes of keys and values that are kept for later prompts."),
    "models_loaded": ("gauge", "Models in memory."),
    "memory_active_bytes": ("gauge", "Bytes of arrays, as MLX counts them."),
    "memory_peak_bytes": ("gauge", "The most of them so far, with room for tokens that had not come."),
    "memory_cache_bytes": ("gauge", "Bytes that MLX keeps to use them again."),
    "first_token_seconds": ("histogram", "From the request to the first token of a reply."),
    "between_tokens_seconds": ("histogram", "Between two tokens of a reply."),
    "reply_seconds": ("histogram", "From the request to the end of a reply."),
}


class Metrics:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.requests: Counter[tuple[str, int]] = Counter()
        self.replies: Counter[str] = Counter()  # by model
        self.first, self.between, self.whole = Histogram(FIRST), Histogram(BETWEEN), Histogram(WHOLE)

    def text(self, gauges: Mapping[str, int]) -> str:
        """The exposition format. `gauges` are those of the engines; those of memory are asked for here."""
        memory = {
            "memory_active_bytes": mx.get_active_memory() - idle_bytes(),
            "memory_peak_bytes": mx.get_peak_memory(),
            "memory_cache_bytes": mx.get_cache_memory(),
        }
        histograms = {
            "first_token_seconds": self.first,
            "between_tokens_seconds": self.between,
            "reply_seconds": self.whole,
        }
        values = {**self.counts, **gauges, **memory}
        lines = []
        for short, (kind, text) in HELP.items():
            name = PREFIX + short
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            if short == "requests_total":
                lines += [
                    f'{name}{{endpoint="{endpoint}",status="{status}"}} {count}'
                    for (endpoint, status), count in sorted(self.requests.items())
                ]
            elif short == "replies_total":
                lines += [f"{name}{{model={_quoted(model)}}} {count}" for model, count in sorted(self.replies.items())]
            elif kind == "histogram":
                lines += histograms[short].lines(name)
            else:
                lines.append(f"{name} {values.get(short, 0)}")
        return "\n".join(lines) + "\n"


def _quoted(value: str) -> str:
    """A label of the exposition format, whose escapes are those of JSON."""
    return json.dumps(value, ensure_ascii=False)
