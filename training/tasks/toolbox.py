"""The tools the corpus offers, as data: names, parameters, requests, responses and the answers to them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from training.tables import CITIES
from training.words import NOUNS, made_up, name

Value = str | int
LANGUAGES = "French German Spanish Italian Chinese Japanese Korean Russian Dutch Greek".split()
CURRENCIES = "USD EUR GBP JPY CNY CHF CAD AUD INR".split()
ROOMS = "kitchen bedroom bathroom office hallway garage garden cellar".split()
SKIES = "sunny cloudy rainy windy snowy foggy".split()


def city(rng: random.Random) -> str:
    return rng.choice(CITIES) if rng.random() < 0.65 else made_up(rng)


def clock(rng: random.Random) -> str:
    return f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"


@dataclass(frozen=True)
class Param:
    """names are alternatives: the call must use the one that the offered schema has."""

    names: tuple[str, ...]
    kind: str
    text: str
    value: Callable[[random.Random], Value]


@dataclass(frozen=True)
class Tool:
    names: tuple[str, ...]
    texts: tuple[str, ...]
    params: tuple[Param, ...]
    requests: tuple[str, ...]  # {0}, {1}, ... are the parameters' values
    response: Callable[[random.Random], dict[str, Any]]
    answer: str  # {0}, {1}, ... as above; named fields from the response


def param(names: str, text: str, value: Callable[[random.Random], Value], kind: str = "string") -> Param:
    return Param(tuple(names.split()), kind, text, value)


def amount(most: int) -> Callable[[random.Random], int]:
    return lambda rng: rng.randint(1, 9) if rng.random() < 0.3 else rng.randint(1, most)


def phrase(rng: random.Random) -> str:
    return " ".join(rng.sample(NOUNS, rng.randint(1, 2)))


TOOLS = (
    Tool(
        ("get_weather", "weather", "get_current_weather", "weather_lookup"),
        ("Get the current weather for a city.", "Look up the weather.", "Current weather in a place."),
        (param("city location place", "Name of the city", city),),
        (
            "What is the weather in {0}?",
            "How is the weather in {0}?",
            "What's the weather like in {0} today?",
            "Weather in {0}?",
            "Is it raining in {0}?",
            "Tell me the weather in {0}.",
            "How warm is it in {0}?",
            "{0}的天气怎么样？",
            "What is the temperature in {0}?",
        ),
        lambda r: {"temperature": r.randint(-9, 40), "condition": r.choice(SKIES)},
        "It is {temperature} degrees and {condition} in {0}.",
    ),
    Tool(
        ("get_time", "current_time", "world_clock", "get_local_time"),
        ("Get the current time in a city.", "Local time of a place."),
        (param("city location timezone", "Name of the city", city),),
        (
            "What time is it in {0}?",
            "Tell me the time in {0}.",
            "What's the local time in {0}?",
            "Time in {0}?",
            "How late is it in {0}?",
            "{0}现在几点？",
        ),
        lambda r: {"time": clock(r)},
        "It is {time} in {0}.",
    ),
    Tool(
        ("set_timer", "start_timer", "timer"),
        ("Start a timer.", "Set a countdown timer in minutes."),
        (param("minutes duration length", "Length in minutes", amount(90), "integer"),),
        (
            "Set a timer for {0} minutes.",
            "Start a {0} minute timer.",
            "Timer: {0} minutes.",
            "Please start a timer of {0} minutes.",
            "I need a timer for {0} minutes.",
            "设置一个{0}分钟的计时器。",
        ),
        lambda r: {"status": "started"},
        "The timer for {0} minutes is {status}.",
    ),
    Tool(
        ("send_email", "email", "send_mail", "mail"),
        ("Send an email.", "Send an email to a person."),
        (
            param("to recipient person", "Who gets the email", name),
            param("subject topic title", "Subject of the email", phrase),
        ),
        (
            "Send an email to {0} about {1}.",
            "Email {0} about {1}.",
            "Write an email to {0} with the subject {1}.",
            "Mail {0}, subject {1}.",
        ),
        lambda r: {"status": r.choice(("sent", "queued"))},
        "The email to {0} is {status}.",
    ),
    Tool(
        ("play_music", "play_song", "music_player"),
        ("Play music by an artist.", "Start playing music."),
        (param("artist musician name", "Name of the artist", name),),
        (
            "Play music by {0}.",
            "Play something by {0}.",
            "I want to hear {0}.",
            "Put on some {0}.",
            "Play {0}.",
            "播放{0}的音乐。",
        ),
        lambda r: {"status": "playing", "song": made_up(r)},
        "Now playing {song} by {0}.",
    ),
    Tool(
        ("convert_currency", "currency", "exchange"),
        ("Convert money between currencies.", "Convert an amount into another currency."),
        (
            param("amount value", "Amount of money", amount(999), "integer"),
            param("from source from_currency", "Currency to convert from", lambda r: r.choice(CURRENCIES)),
            param("to target to_currency", "Currency to convert to", lambda r: r.choice(CURRENCIES)),
        ),
        (
            "Convert {0} {1} to {2}.",
            "How much is {0} {1} in {2}?",
            "What is {0} {1} in {2}?",
            "Change {0} {1} into {2}.",
            "Exchange {0} {1} for {2}.",
        ),
        lambda r: {"result": r.randint(1, 9999)},
        "{0} {1} are {result} {2}.",
    ),
    Tool(
        ("translate", "translate_text", "translator"),
        ("Translate text into a language.", "Translate a text."),
        (
            param("text words", "Text to translate", phrase),
            param("language target target_language", "Language to translate into", lambda r: r.choice(LANGUAGES)),
        ),
        ("Translate {0} into {1}.", "Translate {0} to {1}.", "What is {0} in {1}?", "How do you say {0} in {1}?"),
        lambda r: {"translation": made_up(r).lower()},
        "In {1}, {0} is {translation}.",
    ),
    Tool(
        ("set_alarm", "alarm", "create_alarm"),
        ("Set an alarm.", "Set an alarm for a time of day."),
        (param("time at", "Time of day, HH:MM", clock),),
        (
            "Set an alarm for {0}.",
            "Wake me at {0}.",
            "Alarm at {0}.",
            "Please wake me up at {0}.",
            "I need an alarm at {0}.",
            "设置{0}的闹钟。",
        ),
        lambda r: {"status": r.choice(("set", "saved"))},
        "The alarm for {0} is {status}.",
    ),
    Tool(
        ("multiply", "multiply_numbers", "product"),
        ("Multiply two numbers.", "Compute a product."),
        (
            param("a x first", "First number", amount(99), "integer"),
            param("b y second", "Second number", amount(99), "integer"),
        ),
        (
            "What is {0} times {1}?",
            "Multiply {0} by {1}.",
            "What is {0} * {1}?",
            "{0} times {1}",
            "Compute {0} * {1}.",
            "{0}乘以{1}等于多少？",
        ),
        lambda r: {"result": r.randint(1, 9801)},
        "{0} times {1} is {result}.",
    ),
    Tool(
        ("web_search", "search", "search_web"),
        ("Search the web.", "Look something up on the internet."),
        (param("query text q", "What to search for", phrase),),
        (
            "Search the web for {0}.",
            "Look up {0} on the internet.",
            "Search for {0}.",
            "Find information about {0} online.",
            "搜索{0}。",
        ),
        lambda r: {"results": r.randint(0, 99)},
        "I found {results} results for {0}.",
    ),
    Tool(
        ("turn_on_light", "light_on", "switch_on_light"),
        ("Turn on the light in a room.", "Switch on a light."),
        (param("room place", "The room", lambda r: r.choice(ROOMS)),),
        (
            "Turn on the light in the {0}.",
            "Switch on the {0} light.",
            "Lights on in the {0}.",
            "Make it bright in the {0}.",
        ),
        lambda r: {"status": "on"},
        "The light in the {0} is {status}.",
    ),
    Tool(
        ("get_stock_price", "stock_price", "stock"),
        ("Get the price of a stock.", "Look up a share price."),
        (
            param(
                "symbol ticker company",
                "Stock symbol",
                lambda r: "".join(r.choice("ABCDEFGHIKLMNOPRSTUVXZ") for _ in range(r.randint(2, 4))),
            ),
        ),
        (
            "What is the stock price of {0}?",
            "How much is {0} stock?",
            "Price of {0} shares?",
            "Stock price of {0}.",
            "How is {0} stock doing?",
        ),
        lambda r: {"price": r.randint(1, 999)},
        "The stock price of {0} is {price}.",
    ),
    Tool(
        ("get_population", "population", "population_lookup"),
        ("Get the population of a place.", "Look up how many people live in a place."),
        (param("place city country", "Name of the place", city),),
        ("What is the population of {0}?", "How many people live in {0}?", "Population of {0}?", "{0}有多少人口？"),
        lambda r: {"population": r.randint(1000, 99999)},
        "{0} has a population of {population}.",
    ),
    Tool(
        ("add_to_list", "shopping_list", "add_item"),
        ("Add an item to the shopping list.", "Put something on a list."),
        (
            param("item thing", "What to add", lambda r: r.choice(NOUNS)),
            param("count quantity", "How many", amount(20), "integer"),
        ),
        ("Add {1} {0} to the shopping list.", "Put {1} {0} on my list.", "I need to buy {1} {0}, add it to the list."),
        lambda r: {"status": "added"},
        "I {status} {1} {0} to the list.",
    ),
)
