"""The thinking budget: after a number of tokens of thinking the engine closes the block, and the answer follows."""

from collections.abc import Sequence

from ..errors import UsageError
from ..text.streaming import ReplyText
from ..text.tokenizer import END_THINK, THINK, Tokenizer

# The text with which Qwen's documentation closes a think block early; Qwen3 is trained to answer after it.
CLOSING = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now."
    f"\n{END_THINK}\n\n"
)


class ThinkingBudget:
    """Steering that replaces the model's tokens by CLOSING after `budget` tokens of thinking.

    The count begins after the opening tag, or with the reply if the prompt opens the block. A reply that does not
    think, or whose thinking is shorter, does not change.
    """

    def __init__(self, tokenizer: Tokenizer, budget: int, opens_thinking: bool = False, begun: bool = False):
        self._reply = ReplyText(tokenizer, (), opens_thinking, begun)
        self._closing = tokenizer.encode(CLOSING)
        self._forced: Sequence[int] = ()
        self._left = budget
        self._over = False
        self._look()

    def waits(self) -> bool:
        return bool(self._forced)

    def allowed(self) -> None:
        return None

    def settle(self, token: int) -> int:
        if self._forced:
            token, *self._forced = self._forced
        elif not self._over:
            self._left -= self._reply.thinks is True
            self._reply.add(token)
            self._look()
        return token

    def _look(self) -> None:
        """Note whether the thinking has ended by itself, or must end now."""
        thinks = self._reply.thinks
        if thinks and self._left <= 0:
            self._forced = self._closing
        self._over = bool(self._forced) or thinks is False


def check_budget(tokenizer: Tokenizer) -> None:
    """Raises UsageError if the tokenizer has no tokens for the tags of a think block."""
    for tag in (THINK, END_THINK):
        if len(tokenizer.encode(tag)) != 1:
            raise UsageError(
                f"thinking_budget needs a model that thinks, and this tokenizer has no token {tag}; leave it out"
            )
