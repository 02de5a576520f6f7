"""The real client of OpenAI, unchanged: sync, async, streams and the helpers for them, errors."""

import asyncio
import json

import pytest

openai = pytest.importorskip("openai")

SUM = [{"role": "user", "content": "What is 17 + 25?"}]
ANSWER = "17 + 25 = 42."


@pytest.fixture(scope="module")
def client(demo):
    with openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_chat(client):
    answer = client.chat.completions.create(model="demo", messages=SUM)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].message.reasoning_content
    assert answer.usage.prompt_tokens_details.cached_tokens is not None
    history = [*SUM, answer.choices[0].message, {"role": "user", "content": "hello"}]
    again = client.chat.completions.create(model="demo", messages=history, extra_body={"enable_thinking": False})
    assert again.choices[0].message.content


def test_a_stream(client):
    options = {"include_usage": True}
    stream = client.chat.completions.create(model="demo", messages=SUM, stream=True, stream_options=options)
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    assert chunks[-1].usage.total_tokens > 20


def test_the_stream_helper(client):
    with client.chat.completions.stream(model="demo", messages=SUM, logprobs=True) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done", "logprobs.content.delta"} <= kinds
    assert final.choices[0].message.content == ANSWER
    assert "".join(entry.token for entry in final.choices[0].logprobs.content) == ANSWER


def test_the_async_client(demo):
    async def run():
        async with openai.AsyncOpenAI(base_url=f"{demo.url}/v1", api_key="none") as client:
            answers = await asyncio.gather(
                *[client.chat.completions.create(model="demo", messages=SUM) for _ in range(4)]
            )
            stream = await client.chat.completions.create(model="demo", messages=SUM, stream=True)
            return answers, [chunk async for chunk in stream]

    answers, chunks = asyncio.run(run())
    assert {answer.choices[0].message.content for answer in answers} == {ANSWER}
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER


def test_completions_and_models(client):
    answer = client.completions.create(model="demo", prompt="hello", max_tokens=3, logprobs=1)
    assert "".join(answer.choices[0].logprobs.tokens) == answer.choices[0].text
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").id == "demo"


def test_errors_are_the_clients_own(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="demo", messages=SUM, max_tokens=99999)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "max_tokens")
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client.chat.completions.create(model="gpt", messages=SUM)


def test_parse_with_pydantic(client):
    pydantic = pytest.importorskip("pydantic")

    class Sum(pydantic.BaseModel):
        first: int
        total: int

    answer = client.chat.completions.parse(model="demo", messages=SUM, response_format=Sum, temperature=1.5)
    assert isinstance(answer.choices[0].message.parsed, Sum)
    with client.chat.completions.stream(model="demo", messages=SUM, response_format=Sum) as stream:
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Sum)


def test_the_loop_of_tools(client):
    tools = [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "description": "Get the weather forecast for a city.",
                "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
            },
        }
    ]
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    options = {"model": "demo", "tools": tools, "extra_body": {"enable_thinking": False}}
    first = client.chat.completions.create(messages=messages, **options)
    [call] = first.choices[0].message.tool_calls
    assert (first.choices[0].finish_reason, call.function.name) == ("tool_calls", "get_weather")
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"weather": "sunny", "temperature": 21}'}
    second = client.chat.completions.create(messages=[*messages, first.choices[0].message, result], **options)
    assert second.choices[0].finish_reason == "stop"
    assert second.choices[0].message.content
    with client.chat.completions.stream(messages=messages, **options) as stream:
        final = stream.get_final_completion()
    [streamed] = final.choices[0].message.tool_calls
    assert (streamed.function.name, streamed.function.arguments) == (call.function.name, call.function.arguments)
    named = {"type": "function", "function": {"name": "get_weather"}}
    with client.chat.completions.stream(messages=messages, tool_choice=named, **options) as stream:
        deltas = [event for event in stream if event.type == "tool_calls.function.arguments.delta"]
        [bound] = stream.get_final_completion().choices[0].message.tool_calls
    assert len(deltas) > 2  # bound by a grammar, they are sent as they are written
    assert "".join(event.arguments_delta for event in deltas) == bound.function.arguments
    assert "city" in json.loads(bound.function.arguments)


def test_a_bound_call_that_is_cut(client):
    """A stream has sent a part of it and ends with "length"; the answer that is not streamed has it as text."""
    tools = [
        {
            "type": "function",
            "function": {
                "name": "note",
                "parameters": {"properties": {"text": {"type": "string", "minLength": 400}}, "required": ["text"]},
            },
        }
    ]
    options = {
        "model": "demo",
        "messages": [{"role": "user", "content": "Take a note."}],
        "tools": tools,
        "tool_choice": "required",
        "max_tokens": 40,
        "temperature": 0,
        "extra_body": {"enable_thinking": False},
    }
    [choice] = client.chat.completions.create(**options).choices
    assert (choice.finish_reason, choice.message.tool_calls) == ("length", None)
    assert choice.message.content.startswith("<tool_call>")
    chunks = list(client.chat.completions.create(stream=True, **options))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert calls[0].function.name == "note"
    assert "".join(call.function.arguments or "" for call in calls) in choice.message.content
    assert chunks[-1].choices[0].finish_reason == "length"
