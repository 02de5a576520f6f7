"""The document and the answers: every answer is of the shape that it declares."""

import pytest

from mlx_qwen3.server.app import ROUTES
from mlx_qwen3.server.openapi import ENDPOINTS, document

CHAT = "/v1/chat/completions"


def test_every_route_is_in_it(demo):
    status, found = demo.ask("/openapi.json")
    assert (status, found) == (200, document())
    routes = {(route.path.replace(":path", ""), (route.methods - {"HEAD"}).pop().lower()) for route in ROUTES}
    assert routes == ENDPOINTS.keys()
    assert {(path, method) for path, item in found["paths"].items() for method in item} == routes


def fault(schema, value, schemas):
    """What is wrong with a value, by the keywords that msgspec writes; None if nothing is."""
    if "$ref" in schema:
        return fault(schemas[schema["$ref"].rsplit("/", 1)[1]], value, schemas)
    if "anyOf" in schema:
        faults = [fault(option, value, schemas) for option in schema["anyOf"]]
        return None if None in faults else str(faults)
    if "enum" in schema:
        return None if value in schema["enum"] else f"{value!r} is not one of {schema['enum']}"
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "null": type(None)}
    kind = schema.get("type")
    if kind == "boolean" or isinstance(value, bool):
        return None if kind == "boolean" and isinstance(value, bool) else f"{value!r} is not a {kind}"
    if kind and not isinstance(value, kinds[kind]):
        return f"{value!r} is not a {kind}"
    if kind == "array":
        return next((text for item in value if (text := fault(schema["items"], item, schemas))), None)
    if kind == "object" and "properties" in schema:
        if lacking := set(schema.get("required", ())) - value.keys():
            return f"{lacking} is missing"
        if unknown := value.keys() - schema["properties"].keys():
            return f"{unknown} is not declared"
        pairs = [(schema["properties"][key], item) for key, item in value.items()]
        return next((text for inner, item in pairs if (text := fault(inner, item, schemas))), None)
    return None


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "What is 17 + 25?"}], "logprobs": True}, "ChatCompletion"),
        (CHAT, {"messages": []}, "Error"),
        ("/v1/completions", {"prompt": "hello", "max_tokens": 3, "logprobs": 1}, "Completion"),
        ("/tokenize", {"prompt": "hello", "return_token_strs": True}, "Tokens"),
        ("/detokenize", {"tokens": [1, 2]}, "Text"),
        ("/v1/models", None, "ModelList"),
        ("/v1/models/demo", None, "Model"),
        ("/v1/models/other", None, "Error"),
        ("/health", None, "Health"),
        ("/nowhere", None, "Error"),
    ],
)
def test_answers_have_the_declared_shape(demo, path, body, name):
    schemas = document()["components"]["schemas"]
    assert fault(schemas[name], demo.ask(path, body)[1], schemas) is None


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "hello"}], "logprobs": True}, "ChatCompletionChunk"),
        ("/v1/completions", {"prompt": "hello", "max_tokens": 3}, "Completion"),
    ],
)
def test_chunks_have_the_declared_shape(demo, path, body, name):
    schemas = document()["components"]["schemas"]
    for event in demo.events(path, {**body, "stream_options": {"include_usage": True}}):
        assert fault(schemas[name], event, schemas) is None


def test_the_check_itself_finds_faults():
    schemas = document()["components"]["schemas"]
    assert "is missing" in fault(schemas["Text"], {}, schemas)
    assert "is not declared" in fault(schemas["Text"], {"prompt": "x", "y": 1}, schemas)
    assert "is not a string" in fault(schemas["Text"], {"prompt": 1}, schemas)
