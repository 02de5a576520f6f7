"""The next tokens of the rows of a batch: from logits, by steering and sampling, to the rows.

B slots, V vocabulary
"""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ..errors import HealthError
from ..files.values import to_mlx
from .filters import BROKEN
from .logprobs import Scores
from .rows import Row
from .sampler import Sampler
from .sampling import SamplingParams

IDLE = Row((0,), SamplingParams(temperature=0), 0)  # stands in a free slot
Coming = tuple[mx.array, Scores | None]  # the tokens (B,) of a step, and their log-probabilities
Event = tuple[Row, int | Exception]  # the next token of a row, or the error that ended it
News = list[Event]  # in the order in which the tokens were chosen


class NextTokens:
    """Chooses the tokens of the rows in these slots, and adds them to the rows."""

    def __init__(self, slots: Sequence[Row | None], vocabulary: int):
        """Ids from `vocabulary` up are never chosen."""
        self._slots, self._vocabulary = slots, vocabulary
        self._rows = [row for row in slots if row]
        self._steered = any(row.steering for row in self._rows)
        self._asked = [row.logprobs if row else None for row in slots]
        self._scored = any(wanted is not None for wanted in self._asked)
        self._failures: News = []  # of making masks, until the news of the step are told
        self.renew()

    def renew(self) -> None:
        """Count the tokens of the rows anew, after some that the sampler has chosen were dropped or replaced."""
        rows = [row or IDLE for row in self._slots]
        self.sampler = Sampler(
            [row.sampling for row in rows],
            [row.prompt for row in rows],
            self._vocabulary,
            [row.number for row in rows],
            [row.tokens for row in rows],
        )

    def waits(self) -> bool:
        """Whether a row needs its last token before the next one is chosen."""
        return self._steered and any(row.waits() for row in self._rows)

    def choose(self, logits: mx.array, unknown: int = 0) -> Coming:
        """The tokens that logits (B, V) give, if the last `unknown` tokens of each row are not in its list yet."""
        raw = logits
        if self.waits():
            logits = self._allowed(logits)
        positions = [len(row.tokens) + unknown if row else 0 for row in self._slots]
        following = self.sampler.next(logits, positions)
        return following, Scores(raw, following, self._asked, self._vocabulary) if self._scored else None

    def receive(self, coming: Coming) -> News:
        """Wait for the tokens of a step, and add them to their rows."""
        following, scores = coming
        tokens: list[int] = following.tolist()  # type: ignore[assignment]
        news: News = []
        steered = False
        for slot, (row, token) in enumerate(zip(self._slots, tokens, strict=True)):
            if row is None or row.ended:
                continue
            if token == BROKEN:
                row.ended = True
                news.append((row, self.sampler.broken(slot, len(row.tokens))))
                continue
            news.append(_taken(row, token, scores, slot))
            steered = steered or news[-1] != (row, token)
        if steered:  # the sampler has counted the original token; every row must have its new one by now
            self.renew()
        failures, self._failures = self._failures, []
        return [*news, *failures]

    def check(self, logits: mx.array, drafts: Sequence[int]) -> tuple[News, bool]:
        """The next tokens of the only row, up to the first that is not the draft in its place.

        logits (k + 1, V) after the row's last token and after each of k drafts. False: the logits after these tokens
        are unusable, maybe only because of a wrong draft.
        """
        [row] = self._rows
        if row.waits():
            return self._check_one_by_one(logits, drafts)
        try:
            tokens = self.sampler.check(logits, len(row.tokens), [row.tokens[-1], *drafts])
        except HealthError:
            return [], False
        asked, count = self._asked * len(tokens), len(tokens)
        scores = Scores(logits[:count], mx.array(tokens), asked, self._vocabulary) if self._scored else None
        news: News = []
        for place, token in enumerate(tokens):
            news.append(_taken(row, token, scores, place))
            if row.ended or row.tokens[-1] != token:
                break
        if news != [(row, token) for token in tokens]:
            self.renew()
        return news, True

    def _check_one_by_one(self, logits: mx.array, drafts: Sequence[int]) -> tuple[News, bool]:
        """The same for a row that needs each token before the next is chosen: a grammar has other masks then."""
        [row] = self._rows
        news: News = []
        for place, guess in enumerate([*drafts, None]):
            coming = self.choose(logits[place : place + 1])
            if coming[0].item() == BROKEN:
                self.renew()
                return news, False
            news += self.receive(coming)
            if row.ended or row.tokens[-1] != guess:
                break
        return news, True

    def _allowed(self, logits: mx.array) -> mx.array:
        """The logits (B, V) without the ids that the steering of a row excludes."""
        mx.async_eval(logits)  # the device computes while the host makes masks
        masks = [self._mask(row) if row and not row.ended else None for row in self._slots]
        if all(mask is None for mask in masks):
            return logits
        logits = logits[:, : self._vocabulary]
        everything = np.ones(logits.shape[-1], bool)
        return mx.where(to_mlx(np.stack([everything if mask is None else mask for mask in masks])), logits, -mx.inf)

    def _mask(self, row: Row) -> np.ndarray | None:
        try:
            return row.allowed()
        except Exception as error:
            row.ended = True
            self._failures.append((row, error))
            return None


def _taken(row: Row, token: int, scores: Scores | None, place: int) -> Event:
    """Add a token to a row, with its log-probabilities. An error of its steering ends this row alone."""
    try:
        taken = row.take(token)
        if scores and row.logprobs is not None:
            row.scores.append(scores.of(place, taken))
    except Exception as error:
        row.ended = True
        return row, error
    return row, taken
