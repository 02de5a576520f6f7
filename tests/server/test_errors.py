"""From the package's errors to those of the API."""

import logging

import msgspec
import pytest

from mlx_qwen3.errors import EngineError, HealthError, MemoryBudgetError, PromptError, UsageError
from mlx_qwen3.server.errors import ApiError, from_exception, refused

NAMES = ("temperature", "stop")


@pytest.mark.parametrize(
    ("error", "status", "param", "code"),
    [
        (PromptError("messages[0] is a number"), 400, "messages", None),
        (PromptError("9 tokens fill the context of 8"), 400, "messages", "context_length_exceeded"),
        (PromptError("max_tokens 9 exceed the context of 8"), 400, "max_tokens", "context_length_exceeded"),
        (UsageError("temperature is 7"), 400, "temperature", "invalid_value"),
        (UsageError("something is 7"), 400, None, "invalid_value"),
        (MemoryBudgetError("it needs 3 GB of 2"), 400, "messages", "memory_budget_exceeded"),
        (EngineError("the engine was closed"), 503, None, "engine_unavailable"),
        (HealthError("NaN in the logits"), 500, None, None),
        (refused("store", "is true"), 400, "store", "unsupported_parameter"),
    ],
)
def test_each_has_its_status_and_names_the_parameter(error, status, param, code):
    found = from_exception(error, "messages", NAMES)
    assert (found.status, found.param, found.code) == (status, param, code)
    body = msgspec.json.decode(found.body())["error"]
    assert set(body) == {"message", "type", "param", "code"}
    assert str(error) in body["message"]


def test_a_message_has_the_name_of_the_api():
    found = from_exception(UsageError("template_args may not set messages"), "messages", NAMES)
    assert (found.message, found.param) == ("chat_template_kwargs may not set messages", "chat_template_kwargs")


def test_a_bug_is_logged_and_its_text_is_not_sent(caplog):
    with caplog.at_level(logging.ERROR, "mlx_qwen3.server"):
        found = from_exception(ZeroDivisionError("secret path"))
    assert (found.status, "secret" in found.message) == (500, False)
    assert "secret path" in caplog.text


def test_headers_travel():
    assert ApiError(429, "full", headers={"Retry-After": "1"}).response().headers["retry-after"] == "1"
