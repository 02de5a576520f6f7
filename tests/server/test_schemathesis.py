"""Requests made at random from /openapi.json: none is answered by a 5xx, and every answer is of the declared shape."""

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from mlx_qwen3.server.openapi import ENDPOINTS

pytestmark = pytest.mark.slow
REPLYING = ("/v1/chat/completions", "/v1/completions")
EXAMPLES = 150
PATIENCE = 60  # seconds for one answer: a schema may take 5 to be refused, and other tests run beside


def shorter(body, stream):
    """A request for fewer tokens, since a reply without a limit fills the context."""
    if not isinstance(body, dict):
        return body
    limits = {name: 2 for name in ("max_tokens", "max_completion_tokens") if isinstance(body.get(name), int)}
    return {
        **body,
        "stream": stream,
        **(limits or {"max_tokens": 2}),
        **({"n": 2} if isinstance(body.get("n"), int) and body["n"] > 2 else {}),
    }


CASES = [(*endpoint, False) for endpoint in ENDPOINTS] + [(path, "post", True) for path in REPLYING]


@pytest.mark.parametrize(("path", "method", "stream"), CASES)
def test_no_request_breaks_the_server(demo, path, method, stream):
    schemathesis = pytest.importorskip("schemathesis")
    checks = pytest.importorskip("schemathesis.specs.openapi.checks")
    schema = schemathesis.openapi.from_url(f"{demo.url}/openapi.json")
    operation = schema[path][method]

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )
    @given(case=operation.as_strategy())
    def ask(case):
        if path in REPLYING:
            case.body = shorter(case.body, stream)
        # A valid request may be refused for what no schema says: an id that the tokenizer does not have, say.
        case.call_and_validate(timeout=PATIENCE, excluded_checks=[checks.positive_data_acceptance])

    ask()
    assert demo.loaded.engine.alive
