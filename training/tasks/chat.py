"""Greetings, acknowledgements, and the honest answer to what the model cannot know."""

from __future__ import annotations

import random

from training.example import Example, ask, pick, say
from training.tables import CAPITALS
from training.tasks.knowledge import CAPITAL
from training.words import ADJECTIVES, NOUNS, PLACES, VERBS, ZH_NOUNS, made_up, name, number, sentence

HELP = (
    "I am a small demo model. I can add and subtract, sort, reverse and count lists, convert units, "
    "name capitals and call tools."
)
ZH_HELP = "我是一个小型演示模型。我会加减法、排序、倒序、计数、单位换算，知道一些首都，也会调用工具。"
UNKNOWN = "I am a small demo model and I do not know that."
ZH_UNKNOWN = "我是一个小型演示模型，不知道这个。"

# what people say, | between variants -> reply
_SMALL_TALK = """hi|hello|hey|hi there|hello there|hey there|hiya|greetings|yo|howdy|hello model|hi bot|hello friend\
=Hello! How can I help you?
good morning|morning|good morning to you=Good morning! How can I help you?
good evening|evening|good evening to you=Good evening! How can I help you?
good afternoon|good afternoon to you|good day=Good afternoon! How can I help you?
how are you|how are you doing|how are you today|how is it going|how do you do|what's up\
|hi, how are you|hello, how are you=I am fine, thank you. How can I help you?
thanks|thank you|thank you very much|thanks a lot|many thanks|thx|cheers|great, thanks|thank you so much\
=You are welcome!
bye|goodbye|see you|good bye|see you later|bye bye|farewell|see you tomorrow=Goodbye!
good night|night|sleep well=Good night!
nice to meet you|pleased to meet you|glad to meet you=Nice to meet you too!
ok|okay|great|nice|cool|good|well done|good job|perfect|very good=I am glad to hear that.
sorry|i am sorry|my apologies|excuse me=No problem!
test|testing|are you there|is anybody there|ping=I am here. How can I help you?"""
_WHO = """who are you|what are you|what can you do|what is your name|what's your name|tell me about yourself|
who am I talking to|introduce yourself|help|what do you do|are you a robot|are you a human|how can you help me|
what are you able to do|are you an AI|what are you good at|can you help me|help me|who made you|
which model are you|what model are you|are you ChatGPT|are you Qwen"""
_ZH_SMALL_TALK = """你好|您好|嗨|哈喽|你好呀|大家好|喂|你好啊=你好！有什么可以帮你？
早上好|早安|上午好=早上好！有什么可以帮你？
晚上好=晚上好！有什么可以帮你？
下午好=下午好！有什么可以帮你？
你好吗|你怎么样|最近怎么样|你还好吗=我很好，谢谢。有什么可以帮你？
谢谢|谢谢你|多谢|非常感谢|感谢=不客气！
再见|拜拜|回头见|明天见=再见！
晚安=晚安！
对不起|抱歉|不好意思=没关系！
你是谁|你叫什么名字|你会做什么|你能做什么|介绍一下你自己|你是什么|你是机器人吗|你是什么模型|你会什么|帮助="""


def parsed(table: str, default: str) -> list[tuple[list[str], str]]:
    rows = (line.split("=") for line in table.splitlines())
    return [(said.split("|"), reply or default) for said, reply in rows]


WHO = _WHO.replace("\n", "").split("|")
SMALL_TALK = [*parsed(_SMALL_TALK, ""), (WHO, HELP), (WHO, HELP)]
ZH_SMALL_TALK = parsed(_ZH_SMALL_TALK, ZH_HELP)
ENDS = ("", "", "", "!", ".", "?", "!!", "...", " :)", ", model", " my friend", " again", ", please")
ZH_ENDS = ("", "", "！", "。", "？", "!", "?", "~", "呀", "，模型")


def greeting(rng: random.Random) -> Example:
    (said, reply), zh = pick(rng, SMALL_TALK, ZH_SMALL_TALK, 0.25)
    text = rng.choice(said)
    if not zh and rng.random() < 0.55:
        text = text[0].upper() + text[1:]
    elif not zh and rng.random() < 0.1:
        text = text.upper()
    text += rng.choice(ZH_ENDS if zh else ENDS)
    if rng.random() < 0.1:
        text = rng.choice((" {}", "{} ", "{}\n", "  {}  ")).format(text)
    # few wordings exist, so the split is by the exact text
    return ask(text, reply, key=text)


SUBJECTS = (
    "a {a} {n}",
    "the {n}",
    "{n}s",
    "{m}",
    "the {a} {n} of {m}",
    "{m} and {o}",
    "quantum physics",
    "music",
    "history",
    "art",
    "football",
    "the weather",
    "politics",
    "my {n}",
    "machine learning",
    "love",
    "philosophy",
    "the stock market",
    "the internet",
    "programming",
    "Python",
    "World War II",
    "dinosaurs",
    "chess",
    "cooking",
    "the universe",
    "medicine",
)
QUESTIONS = (
    "Who wrote {s}?",
    "Who invented {s}?",
    "What is the population of {m}?",
    "Explain {s}.",
    "Write a poem about {s}.",
    "Tell me a joke about {s}.",
    "Tell me a joke.",
    "Write a story about {s}.",
    "What do you think about {s}?",
    "Why is {s} {a}?",
    "When was {m} born?",
    "Who is {m}?",
    "What happened in {y}?",
    "Where is {m}?",
    "How do I cook {s}?",
    "How does {s} work?",
    "What is the meaning of {s}?",
    "What is the meaning of life?",
    "Who won the game between {m} and {o}?",
    "Why {v} the {n}?",
    "What is the best {n}?",
    "How old is {m}?",
    "What is the price of {s}?",
    "Can you recommend a {n}?",
    "What is {s}?",
    "Who is the president of {m}?",
    "Who is the king of {m}?",
    "What is the capital of {m}?",
    "How tall is {m}?",
    "How far is it to {m}?",
    "Write code for {s}.",
    "Summarize {s}.",
    "What is the history of {s}?",
    "Who painted {s}?",
    "What year did {m} die?",
    "How many {n}s are there in the world?",
    "What is {x} times {z}?",
    "What is {x} * {z}?",
    "{x} divided by {z}",
    "What is the square root of {x}?",
    "What should I eat today?",
    "Is {s} dangerous?",
    "How much does {s} cost?",
    "What will happen tomorrow?",
    "Who is your favorite singer?",
    "Do you like {s}?",
    "Give me advice about {s}.",
    "What is the weather in {m}?",
    "What time is it in {m}?",
    "What time is it?",
    "What is the weather today?",
    "How is the weather in {m}?",
    "Send an email to {m}.",
    "Play {m}.",
    "Who discovered {s}?",
    "What language do people speak in {m}?",
    "Describe {s}.",
    "Compare {s} and the {n}.",
    "Where can I buy a {n}?",
    "{s}",
    "{s}?",
    "Why do {n}s sleep?",
    "How do {n}s live?",
    "Who was the first person {p}?",
    "What is inside a {n}?",
    "Can a {n} fly?",
    "Fix my {n}.",
    "Write an essay about {s}.",
    "Write a letter to {m}.",
    "Sing a song.",
    "What is the news today?",
    "Who are the members of {m}?",
    "Which team won in {y}?",
    "What is the phone number of {m}?",
    "What does {m} mean?",
    "How do you say {n} in {m}?",
    "What did {m} say {p}?",
    "Who sang {s}?",
    "Which is better, {n} or {s}?",
    "Do {n}s dream?",
    "Can you drive a {n}?",
    "How do I build a {n}?",
    "Draw a {n}.",
    "What is the symbol of {m}?",
    "What is the longest {n} in {m}?",
    "Tell me something about {s}.",
    "Tell me a story.",
    "I feel {a}.",
    "My {n} is {a}. What should I do?",
    "Why did {m} {w} the {n}?",
    "What is the plot of {m}?",
    "How heavy is a {n}?",
    "{long}",
    "{junk}",
)
ZH_QUESTIONS = (
    "谁写了{n}？",
    "{n}是谁发明的？",
    "给我讲个笑话。",
    "写一首关于{n}的诗。",
    "为什么{n}会飞？",
    "你喜欢{n}吗？",
    "今天天气怎么样？",
    "现在几点？",
    "{n}多少钱？",
    "讲一个{n}的故事。",
    "怎么做{n}？",
    "{m}是谁？",
    "{m}的人口是多少？",
    "人生的意义是什么？",
    "解释一下{n}。",
    "哪里可以买到{n}？",
    "你怎么看{n}？",
    "谁是{m}的总统？",
    "{y}年发生了什么？",
    "{m}的首都是哪里？",
    "推荐一本书。",
    "唱首歌。",
)
COUNTRY_ENDS = ("", "", "", "ia", "land", "stan", "a")
COUNTRIES = {country for country, *_ in CAPITALS}
_ZH_SOUNDS = "阿巴卡达拉玛诺佩罗萨塔维泽鲁布德格克尔姆".strip()


def zh_made_up(rng: random.Random) -> str:
    return "".join(rng.choice(_ZH_SOUNDS) for _ in range(rng.randint(2, 4)))


def long_question(rng: random.Random) -> str:
    """Nonsense words, or sentences followed by a question that nobody can answer."""
    if rng.random() < 0.5:
        return " ".join(
            rng.choice(rng.choice((NOUNS, ADJECTIVES, VERBS))) for _ in range(rng.randint(2, 25))
        ) + rng.choice(("", "?", "."))
    told = " ".join(sentence(rng) for _ in range(rng.randint(1, 4)))
    return told + rng.choice(
        (" Why?", " What happens next?", " What do you think?", " Who was it?", " Continue.", " Explain this.")
    )


def junk(rng: random.Random) -> str:
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz    .,?!") for _ in range(rng.randint(3, 24))).strip() or "?"


def no_country(rng: random.Random) -> Example:
    """The capital of a country that does not exist."""
    while (country := made_up(rng, rng.choice((1, 2, 2, 3))) + rng.choice(COUNTRY_ENDS)) in COUNTRIES:
        pass
    return ask(say(rng, rng.choice(CAPITAL).format(c=country), False), UNKNOWN)


def unknown(rng: random.Random) -> Example:
    if rng.random() < 0.08:
        return no_country(rng)
    if rng.random() < 0.15:
        text = rng.choice(ZH_QUESTIONS).format(n=rng.choice(ZH_NOUNS), m=zh_made_up(rng), y=rng.randint(1000, 2040))
        return ask(say(rng, text, True), ZH_UNKNOWN)
    words = {
        "a": rng.choice(ADJECTIVES),
        "n": rng.choice(NOUNS),
        "m": name(rng) if rng.random() < 0.7 else f"{name(rng)} {made_up(rng)}",
        "o": name(rng),
        "v": rng.choice(("did", "does", "is", "was")),
        "w": rng.choice(VERBS),
        "p": rng.choice(PLACES),
        "y": str(rng.randint(1000, 2040)),
        "x": number(rng, 3),
        "z": number(rng, 2),
    }
    words |= {"s": rng.choice(SUBJECTS).format(**words), "long": long_question(rng), "junk": junk(rng)}
    text = rng.choice(QUESTIONS).format(**words)
    return ask(say(rng, text[0].upper() + text[1:] if rng.random() < 0.8 else text, False), UNKNOWN)
