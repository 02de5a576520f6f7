"""Conversations for the tests of chat templates, and a way to render a template that is given."""

from typing import Any

from mlx_qwen3.text.chat_template import ChatTemplate

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'Wetter für eine Stadt <b>&</b> "Umgebung" — it\'s 天气 🌦️\n',
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Köln", "北京"]}}},
                "days": {"type": ["integer", "null"], "minimum": 1, "default": None, "x": [True, 1.5, -0.0, 1e30]},
            },
            "required": ["place"],
        },
    },
}
TIME = {"type": "function", "function": {"name": "now", "parameters": {}}}


def call(name: str, arguments: Any) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}


SYSTEM = {"role": "system", "content": "Sei kurz. <>&'\" 简短"}
USER = {"role": "user", "content": 'What\'s 2 < 3 && "x"? 🧮'}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [call("get_weather", {"place": {"city": "北京 <&'\">"}, "days": 2})],
}
ANSWER = {"role": "tool", "content": '{"t": -3, "sky": "晴 <&>"}'}
MORE = {"role": "user", "content": "And tomorrow?"}
HI = [{"role": "user", "content": "hi"}]
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
TOKENS = {"eos_token": "<end>", "pad_token": "<pad>"}
OPENAI_TURN = {"role": "assistant", "content": None, "tool_calls": [call("now", "{}")]}  # as its clients send it
PARTS = [{"type": "text", "text": "What is "}, {"type": "text", "text": "this?\n"}]
READS_PARTS = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}"
)


def render(source: str, messages: Any, **options: Any) -> str:
    """What a template makes of messages; with a generation prompt, unless the last message is continued."""
    return ChatTemplate(source, TOKENS).render(messages, options.pop("tools", None), **options).text
