"""What the clients of a server ask: a chat, agents that share a long prefix, and one long prompt.

The questions are such as the demo can answer. Each run has texts of its own, so that no server knows them from before.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..text.tokenizer import Tokenizer

Messages = list[dict[str, str]]
Count = Callable[[str], int]  # the tokens of a text
WORDS = "river stone cloud garden window candle silver forest marble harbour lantern meadow copper anchor".split()


@dataclass(frozen=True)
class Mix:
    """`turns` requests of each client, one after the other. `prefix`: tokens of the system prompt that all share.

    A client that `remembers` sends its earlier questions and the replies to them again, as a conversation does.
    """

    name: str
    turns: int
    prefix: int = 0
    remembers: bool = False


MIXES = (Mix("chat", turns=3), Mix("agents", turns=3, prefix=1000, remembers=True))
ARRIVAL = 2000  # tokens of the prompt that arrives while a reply runs
WORD_BIAS, NEVER = 50.0, -100.0  # added to logits: a random model has some of 15, and none of 50
SHARES = (1.0, 0.5, 0.75)  # of the longest reply, for one request after the other: rows end at different times


def longest_prompt() -> int:
    """Tokens that any prompt has at most, without the replies in it; the chat template's are estimated."""
    return max(ARRIVAL, *(mix.prefix for mix in MIXES)) + 200


class Client:
    """One client's requests: `next` gives the messages of one, `hear` takes the reply to it."""

    def __init__(self, mix: Mix, run: str, number: int, system: str):
        self.turns = mix.turns
        self._mix, self._number = mix, number
        self._rng = random.Random(f"{run} {number}")
        self._system: Messages = [{"role": "system", "content": system}] if system else []
        self._history: Messages = []

    def requests(self, longest: int) -> Iterator[tuple[Messages, int]]:
        """Messages, and the most tokens of the reply."""
        for turn in range(self._mix.turns):
            self._history.append({"role": "user", "content": question(self._rng)})
            share = SHARES[(self._number + turn) % len(SHARES)]
            yield [*self._system, *self._history], max(1, round(longest * share))

    def hear(self, text: str) -> None:
        if self._mix.remembers:
            self._history.append({"role": "assistant", "content": text})
        else:
            self._history.clear()


def clients(mix: Mix, run: str, number: int, count: Count) -> list[Client]:
    """`number` clients. `run` names the run: another name gives other texts."""
    system = filler(run, mix.prefix, count) if mix.prefix else ""
    return [Client(mix, run, index, system) for index in range(number)]


def question(rng: random.Random) -> str:
    numbers = rng.sample(range(10, 100), 5)
    words = rng.sample(WORDS, 3)
    return rng.choice(
        [
            f"What is {rng.randint(10000, 99999)} + {rng.randint(10000, 99999)}?",
            f"What is {rng.randint(50000, 99999)} - {rng.randint(10000, 49999)}?",
            f"Sort: {' '.join(map(str, numbers))}",
            f"Sort: {' '.join(words)}",
        ]
    )


def filler(run: str, tokens: int, count: Count) -> str:
    """Text of about so many tokens."""
    rng = random.Random(f"{run} filler")
    lines: list[str] = []
    made = 0
    while made < tokens:
        line = f"Rule {len(lines) + 1}: the {rng.choice(WORDS)} costs {rng.randint(10, 99)} and the "
        line += f"{rng.choice(WORDS)} is {rng.randint(10, 99)} years old.\n"
        lines.append(line)
        made += count(line)
    return "".join(lines)


def body(messages: Messages, tokens: int, bias: Mapping[int, float] | None = None) -> dict[str, Any]:
    """A request for a greedy stream. `bias`: what is added to the logits of single ids."""
    plain = {
        "messages": messages,
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return {**plain, "logit_bias": {str(token): bias[token] for token in sorted(bias)}} if bias else plain


def words_only(tokenizer: Tokenizer) -> dict[int, float]:
    """A bias to tokens that are words by themselves, for a model whose replies show no text."""
    ids = [tokenizer.encode(f" {word}") for word in WORDS]
    return {one[0]: WORD_BIAS for one in ids if len(one) == 1}
