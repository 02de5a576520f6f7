"""Addition and subtraction: direct up to two digits, larger with the working in columns."""

from __future__ import annotations

import random

from training.example import Example, ask, pick, say

PLUS = (
    "What is {a} + {b}?",
    "What is {a} plus {b}?",
    "{a}+{b}",
    "{a} + {b}",
    "Calculate {a} + {b}.",
    "{a} + {b} = ?",
    "{a}+{b}=?",
    "{a}+{b}=",
    "{a} + {b} =",
    "Add {a} and {b}.",
    "What's {a} plus {b}?",
    "What's {a} + {b}?",
    "How much is {a} + {b}?",
    "How much is {a} plus {b}?",
    "Compute {a}+{b}.",
    "{a} plus {b}",
    "What is the sum of {a} and {b}?",
    "Work out {a} + {b}.",
    "What is {a}+{b}?",
    "What does {a} + {b} equal?",
    "Solve {a} + {b}.",
    "Find the sum of {a} and {b}.",
    "whats {a} + {b}",
    "Can you add {a} and {b}?",
)
MINUS = (
    "What is {a} - {b}?",
    "What is {a} minus {b}?",
    "{a}-{b}",
    "{a} - {b}",
    "Calculate {a} - {b}.",
    "{a} - {b} = ?",
    "{a}-{b}=?",
    "{a}-{b}=",
    "{a} - {b} =",
    "Subtract {b} from {a}.",
    "What's {a} minus {b}?",
    "What's {a} - {b}?",
    "How much is {a} - {b}?",
    "How much is {a} minus {b}?",
    "Compute {a}-{b}.",
    "{a} minus {b}",
    "Take {b} away from {a}.",
    "Work out {a} - {b}.",
    "What is {a}-{b}?",
    "What does {a} - {b} equal?",
    "Solve {a} - {b}.",
    "What is left of {a} after taking away {b}?",
    "whats {a} - {b}",
    "Can you subtract {b} from {a}?",
)
PLUS_ZH = (
    "{a}加{b}等于多少？",
    "{a} + {b} 等于多少？",
    "{a}+{b}=?",
    "请计算{a}+{b}。",
    "计算 {a} + {b}",
    "{a}加{b}是多少？",
    "{a}和{b}的和是多少？",
    "{a}+{b}等于几？",
    "{a} 加 {b} 等于多少？",
)
MINUS_ZH = (
    "{a}减{b}等于多少？",
    "{a} - {b} 等于多少？",
    "{a}-{b}=?",
    "请计算{a}-{b}。",
    "计算 {a} - {b}",
    "{a}减{b}是多少？",
    "{a}减去{b}是多少？",
    "{a}-{b}等于几？",
    "{a} 减 {b} 等于多少？",
)
PHRASES = {"+": (PLUS, PLUS_ZH), "-": (MINUS, MINUS_ZH)}


def columns(a: int, b: int, op: str) -> str:
    """The written method, one line a column from the right: what is left, the digits, the result so far.

    Every line repeats the operands without the digit just used, so a column never has to be found by
    counting: its digits are always the last ones before the colon.
    """
    lines, x, y, carry, done = [], str(a), str(b), 0, ""
    while x or y or carry:
        x, y = x or "0", y or "0"
        p, q = int(x[-1]), int(y[-1])
        total = p + q + carry if op == "+" else p - q - carry
        borrow = " + 10" if total < 0 else ""
        value = total + 10 if borrow else total
        done = str(value % 10) + done
        lines.append(f"{x} {op} {y}: {p} {op} {q} {op} {carry}{borrow} = {value} -> {done}")
        carry = 1 if borrow or value > 9 else 0
        x, y = x[:-1], y[:-1]
    return "\n".join(lines)


def working(a: int, b: int, op: str) -> str:
    if op == "-" and a < b:
        return f"{a} < {b}\n" + columns(b, a, op)
    return columns(a, b, op)


def question(rng: random.Random, a: int, b: int, op: str, share: float = 0.22) -> Example:
    template, zh = pick(rng, *PHRASES[op], share=share)
    result = a + b if op == "+" else a - b
    answer = f"{a} {op} {b} = {result}" + ("。" if zh and "=?" not in template else ".")
    return ask(say(rng, template.format(a=a, b=b), zh), answer, working(a, b, op), key=f"{a}{op}{b}")


def small(rng: random.Random) -> int:
    return rng.randint(0, 9) if rng.random() < 0.2 else rng.randint(0, 99)


def addition(rng: random.Random) -> Example:
    return question(rng, small(rng), small(rng), "+")


def subtraction(rng: random.Random) -> Example:
    a, b = small(rng), small(rng)
    # negative results stay a minority: people ask for them less
    return question(rng, max(a, b), min(a, b), "-") if rng.random() < 0.6 else question(rng, a, b, "-")


def large(rng: random.Random) -> Example:
    """Operands of 3 to 6 digits; differences are not negative."""
    a, b = (rng.randint(10 ** (n - 1), 10**n - 1) for n in (rng.randint(3, 6), rng.randint(3, 6)))
    if rng.random() < 0.5:
        return question(rng, a, b, "+")
    return question(rng, max(a, b), min(a, b), "-")
