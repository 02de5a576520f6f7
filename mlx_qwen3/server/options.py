"""From the parameters of a request to the options of a reply. What cannot be honoured is refused by name."""

from dataclasses import replace
from typing import Any

from ..engine.grammar import Grammar
from ..engine.request import ReplyOptions, default_sampling
from ..text.tokenizer import Tokenizer
from .bounds import has_tools
from .errors import ApiError, refused
from .requests import ChatRequest, CompletionRequest, Generation

# Tokens of thinking for an effort; None is no limit. "none" switches thinking off.
EFFORTS = {"minimal": 256, "low": 1024, "medium": 4096, "high": 16384, "xhigh": None}
# Fields of a message that only one role has
OF_ROLE = {
    "tool_calls": "assistant",
    "reasoning_content": "assistant",
    "reasoning": "assistant",
    "thinking": "assistant",
    "tool_call_id": "tool",
}
PENALTIES = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")


def chat_options(
    asked: ChatRequest,
    raw: dict[str, Any],
    tokenizer: Tokenizer,
    bound: Grammar | None = None,
    chat_template: str | None = None,
) -> ReplyOptions:
    """Of a request that `check_chat` has passed. Raises UsageError for what no prompt and no model could honour."""
    thinking, budget = _thinking(asked)
    options = ReplyOptions(
        max_tokens=asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens,
        thinking=thinking,
        thinking_budget=budget,
        stop=asked.stop,
        tools=raw["tools"] if has_tools(asked) else None,
        chat_template=chat_template,
        template_args=asked.chat_template_kwargs or None,
        continue_final_message=bool(asked.continue_final_message),
        literal_content=True,
        logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
        grammar=bound,
    )
    return _with_sampling(options, asked, tokenizer)


def text_options(asked: CompletionRequest, tokenizer: Tokenizer, bound: Grammar | None = None) -> ReplyOptions:
    """The same for a prompt without a chat template."""
    _check(asked)
    if asked.best_of is not None and asked.best_of != (asked.n or 1):
        raise refused("best_of", f"is {asked.best_of}; only the value of n is supported")
    if asked.echo and asked.logprobs is not None:
        raise refused(
            "echo", "with logprobs is not supported: prompts have no log-probabilities; leave one of them out"
        )
    options = ReplyOptions(max_tokens=asked.max_tokens, stop=asked.stop, logprobs=asked.logprobs, grammar=bound)
    return _with_sampling(options, asked, tokenizer)


def messages_of(raw: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation as chat templates know it: what OpenAI calls a developer is the system."""
    return [{**message, "role": "system"} if message["role"] == "developer" else message for message in raw]


def _with_sampling(options: ReplyOptions, asked: Generation, tokenizer: Tokenizer) -> ReplyOptions:
    changes: dict[str, Any] = {name: getattr(asked, name) for name in PENALTIES}
    if asked.top_k is not None:
        changes["top_k"] = max(asked.top_k, 0)  # -1 is off for vLLM's clients
    if asked.seed is not None:
        changes["seed"] = asked.seed % 2**64  # OpenAI's may be negative
    if asked.logit_bias:
        changes["logit_bias"] = asked.logit_bias
    return replace(options, sampling=default_sampling(tokenizer, options.thinks, **changes))


def _check(asked: Generation) -> None:
    if asked.stream_options is not None and not asked.stream:
        raise refused("stream_options", "needs stream: true")


def check_chat(asked: ChatRequest) -> None:
    _check(asked)
    if asked.store:
        raise refused("store", "is true; this server stores nothing")
    if asked.top_logprobs is not None and not asked.logprobs:
        raise refused("top_logprobs", "needs logprobs: true")
    if None not in (asked.max_tokens, asked.max_completion_tokens) and asked.max_tokens != asked.max_completion_tokens:
        raise refused("max_tokens", f"is {asked.max_tokens}, and max_completion_tokens {asked.max_completion_tokens}")
    for index, message in enumerate(asked.messages):
        for name, role in OF_ROLE.items():
            if getattr(message, name) is not None and message.role != role:
                what = f"messages[{index}] ({message.role}) has {name}, which belongs to the role {role}"
                raise ApiError(400, what, f"messages[{index}].{name}", "invalid_value")
    if asked.continue_final_message and (role := asked.messages[-1].role) != "assistant":
        raise refused(
            "continue_final_message", f"continues an assistant's message, and the last one is of the role {role}"
        )
    if asked.tool_choice not in (None, "none", "auto") and not asked.tools:
        raise refused("tool_choice", "needs tools")


def _thinking(asked: ChatRequest) -> tuple[bool | None, int | None]:
    """(whether the reply shall think, tokens after which the engine ends the thinking)"""
    effort, thinking, budget = asked.reasoning_effort, asked.enable_thinking, asked.thinking_budget
    if effort is None:
        return thinking, budget
    given = (asked.chat_template_kwargs or {}).get("enable_thinking", thinking)
    if given is not None and given is not (effort != "none"):
        raise refused("reasoning_effort", f"is {effort!r} and enable_thinking {given}; leave one of them out")
    if budget is not None:
        raise refused("reasoning_effort", f"is {effort!r} and thinking_budget {budget}; leave one of them out")
    return (False, None) if effort == "none" else (thinking, EFFORTS[effort])
