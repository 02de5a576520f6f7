"""Word lists the generators draw from, and made-up names and sentences."""

from __future__ import annotations

import random

NOUNS = """apple arrow bag ball banana basket bear bed bee bell bench bird boat book bottle box bread bridge brush
bucket bus butter button cake camel camera candle car carpet castle cat chair cheese cherry chicken circle city clock
cloud coat coffee coin corn cow crab cup curtain desk diamond dog door dragon dress drum duck eagle egg elephant
engine farm feather fence field fire fish flag flower fork fox frog garden gate glass glove goat gold grape grass
guitar hammer hat hill honey horse house ice island jacket jar juice kettle key king kite knife ladder lake lamp
leaf lemon letter lion lock mango map market mask melon milk mirror money monkey moon mountain mouse needle nest
night nose ocean onion orange owl panda paper peach pear pencil pepper piano picture pillow plane plate pocket
pond potato queen rabbit radio rain rice ring river road robot rock roof room rope rose salt sand school shark sheep
ship shirt shoe silver snake snow soap sock spoon star stone storm sugar sun swan table tea tent tiger tomato tower
train tree truck turtle umbrella valley violin wagon wall watch water whale wheel wind window wolf wood yard
zebra""".split()
ADJECTIVES = """old new red blue green small big quiet loud warm cold bright dark heavy light soft hard slow fast
young tall short round empty full clean dry wet sweet strange happy tired""".split()
VERBS = (
    "saw found lost carried painted moved watched opened closed sold bought cleaned dropped followed hid kept".split()
)
PLACES = [
    "near the river",
    "in the garden",
    "on the hill",
    "behind the house",
    "at the market",
    "under the bridge",
    "by the sea",
    "in the kitchen",
    "after lunch",
    "before sunrise",
    "last week",
    "in the morning",
    "at night",
]
COLORS = "red blue green yellow orange purple black white brown pink grey".split()
ZH_NOUNS = """苹果 香蕉 桌子 椅子 书 猫 狗 鸟 鱼 马 牛 羊 花 树 山 河 海 月亮 太阳 星星 雨 雪 风 火 水 茶 米饭 面包
鸡蛋 牛奶 汽车 火车 飞机 船 门 窗户 灯 笔 纸 钟""".split()
NAMES = """Anna Ben Carla David Emma Felix Grace Hugo Ines Jack Kate Leo Maria Nina Oscar Paul Quinn Rosa Sam Tom
Uma Victor Wendy Xavier Yara Zoe Alice Bob Clara Daniel Eva Frank Hannah Ivan Julia Karl Laura Max Nora Olga Peter
Ruth Sara Theo Vera Will Lily Adam Noah Mia Omar Ali Fatima Kenji Yuki Chen Li Wei Raj Priya Diego Lucia""".split()
ZH_NAMES = "小明 小红 李雷 韩梅 王芳 张伟 刘洋 陈静 赵强 孙丽 周杰 吴敏 小华 小丽 杨光 林涛".split()
_STARTS = "B D F G K L M N P R S T V Z Br Dr Gr Kr Tr St Sh Ch J H".split()
_VOWELS = "a e i o u ai ea io".split()
_ENDS = ["", "n", "r", "l", "s", "m", "k", "t", "x", "nd", "rt"]


def made_up(rng: random.Random, syllables: int = 2) -> str:
    """A pronounceable capitalised name that is almost certainly in no list."""
    parts = [rng.choice(_STARTS) + rng.choice(_VOWELS) for _ in range(syllables)]
    return ("".join(parts) + rng.choice(_ENDS)).lower().capitalize()


def name(rng: random.Random) -> str:
    return rng.choice(NAMES) if rng.random() < 0.5 else made_up(rng, rng.choice((1, 2, 2, 3)))


def number(rng: random.Random, most: int = 6) -> str:
    """1 to `most` digits without a leading zero; each length equally likely."""
    digits = rng.randint(1, most)
    return str(rng.randint(10 ** (digits - 1), 10**digits - 1))


def a(word: str) -> str:
    return ("an " if word[0] in "aeio" else "a ") + word


def sentence(rng: random.Random) -> str:
    return (
        f"The {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)} {rng.choice(VERBS)} {a(rng.choice(ADJECTIVES))} "
        f"{rng.choice(NOUNS)} {rng.choice(PLACES)}."
    )


def sentences(rng: random.Random, count: int) -> str:
    return " ".join(sentence(rng) for _ in range(count))
