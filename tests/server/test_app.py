"""The routes that are not of a subject of their own."""

import pytest
from serving import serving


def test_models(demo):
    status, answer = demo.ask("/v1/models")
    assert (status, [model["id"] for model in answer["data"]]) == (200, ["demo"])
    assert demo.ask("/v1/models/demo")[1]["max_model_len"] == 4096
    assert demo.ask("/v1/models/no/such")[1]["error"]["code"] == "model_not_found"


def test_health_tells_a_dead_engine_and_the_next_request_gets_a_new_one():
    with serving() as served:
        assert served.ask("/health") == (200, {"status": "ok", "models": {"demo": "alive"}})
        served.loaded.engine.close("a fault")
        assert served.ask("/health") == (503, {"status": "down", "models": {"demo": "down"}})
        assert served.chat("hello", max_tokens=1)
        assert served.ask("/health")[0] == 200


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/tokenize", 405)])
def test_errors_of_the_router_have_the_same_shape(demo, method, path, status):
    found, answer = demo.ask(path, method=method)
    assert found == status
    assert path in answer["error"]["message"]
