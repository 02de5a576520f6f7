"""Clients that people have, unchanged: litellm, instructor and LangChain's ChatOpenAI, of the extra `clients`."""

import warnings

import pytest

SUM = [{"role": "user", "content": "What is 17 + 25?"}]
PARIS = "What is the weather in Paris?"
ANSWER = "17 + 25 = 42."
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # theirs


@pytest.fixture
def address(demo):
    return f"{demo.url}/v1"


def test_litellm(address, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or its import asks the network
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        litellm = pytest.importorskip("litellm")
    options = {"model": "openai/demo", "api_base": address, "api_key": "none"}
    answer = litellm.completion(messages=SUM, **options)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].message.reasoning_content
    history = [*SUM, answer.choices[0].message.model_dump(), *SUM]
    assert litellm.completion(messages=history, **options).choices[0].message.content
    chunks = list(litellm.completion(messages=SUM, stream=True, **options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER


def test_langchain(address):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        langchain = pytest.importorskip("langchain_openai")
    chat = langchain.ChatOpenAI(base_url=address, api_key="none", model="demo", temperature=0)
    assert chat.invoke(SUM).content == ANSWER
    assert "".join(chunk.content for chunk in chat.stream(SUM)) == ANSWER

    def get_weather(city: str) -> str:
        """Get the weather forecast for a city."""
        return "sunny"

    quiet = langchain.ChatOpenAI(base_url=address, api_key="none", model="demo", extra_body={"enable_thinking": False})
    for choice in ("auto", "any", "get_weather"):
        asked = quiet.bind_tools([get_weather], tool_choice=choice).invoke(PARIS)
        assert [(call["name"], call["args"]) for call in asked.tool_calls] == [("get_weather", {"city": "Paris"})]

    import pydantic

    class Weather(pydantic.BaseModel):
        """The weather of a city."""

        city: str

    for method in ("json_schema", "function_calling"):
        found = quiet.with_structured_output(Weather, method=method).invoke(PARIS)
        assert isinstance(found, Weather), method


def test_instructor(address):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        instructor = pytest.importorskip("instructor")
    import openai
    import pydantic

    class City(pydantic.BaseModel):
        city: str

    with openai.OpenAI(base_url=address, api_key="none") as plain:
        for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
            client = instructor.from_openai(plain, mode=mode)
            found = client.chat.completions.create(
                model="demo",
                messages=[{"role": "user", "content": PARIS}],
                response_model=City,
                extra_body={"enable_thinking": False},
                max_retries=1,
            )
            assert isinstance(found, City), mode
