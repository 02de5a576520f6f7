"""Markers and thinking in text that arrives in pieces; the oracles read the whole text at once."""

import json
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from checkpoints import write_tokenizer
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mlx_qwen3.text.streaming import MarkerScanner, Piece, ReplyText, StopScanner, ThinkingSplitter
from mlx_qwen3.text.tokenizer import Tokenizer

EXAMPLES = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def every_cut(text: str) -> Iterator[list[str]]:
    """Every way of cutting a text into pieces, 2 ** (len - 1) of them."""
    for chosen in range(2 ** (len(text) - 1)):
        bounds = [0, *(i for i in range(1, len(text)) if chosen >> (i - 1) & 1), len(text)]
        yield [text[a:b] for a, b in pairwise(bounds)]


def pieces_of(text: str) -> st.SearchStrategy[list[str]]:
    """Some way of cutting a text into pieces, empty ones among them."""
    bounds = st.lists(st.integers(0, len(text)), max_size=8).map(lambda cuts: [0, *sorted(cuts), len(text)])
    return bounds.map(lambda b: [text[i:j] for i, j in pairwise(b)])


def scan(pieces: list[str], markers: list[str]) -> tuple[str, bool, str]:
    """(text before the marker, whether there is one, text after it)"""
    scanner, before = MarkerScanner(markers), ""
    for index, piece in enumerate(pieces):
        text, found = scanner.feed(piece)
        before += text
        if found:
            return before, True, scanner.held + "".join(pieces[index + 1 :])
    return before + scanner.held, False, ""


def first_completed(text: str, markers: list[str]) -> tuple[str, bool, str]:
    for end in range(len(text) + 1):
        if complete := [marker for marker in markers if text[:end].endswith(marker)]:
            return text[: end - max(map(len, complete))], True, text[end:]
    return text, False, ""


@pytest.mark.parametrize(
    ("text", "markers", "before", "after"),
    [
        ("one STOP two", ["STOP"], "one ", " two"),
        ("STOP", ["STOP"], "", ""),
        ("SSTOPSTOP", ["STOP"], "S", "STOP"),
        ("aabaaab!", ["aaab"], "aab", "!"),  # the overlap of a failed candidate begins the next
        ("x\n\n\ny", ["\n\n"], "x", "\ny"),
        ("b then a", ["a", "b"], "", " then a"),  # the earliest in the text, not in the list
        ("one END", ["ENDING", "END"], "one ", ""),
        ("an ENDING", ["ENDING", "END"], "an ", "ING"),
        ("--abcd--", ["abcd", "bc"], "--a", "d--"),  # `bc` is complete before `abcd`
        ("--abcd--", ["abcd", "cd"], "--", "--"),  # both end together: the longer began earlier
        ("中文。完", ["。"], "中文", "完"),
    ],
)
def test_marker_is_found_however_the_text_is_cut(text: str, markers: list[str], before: str, after: str) -> None:
    for pieces in every_cut(text):
        assert scan(pieces, markers) == (before, True, after), pieces


@pytest.mark.parametrize("text", ["STO", "S T O P", "SSTOO", "stop"])
def test_text_without_the_marker_passes_whole(text: str) -> None:
    for pieces in every_cut(text):
        assert scan(pieces, ["STOP"]) == (text, False, ""), pieces


nonempty = st.text("ab", min_size=1, max_size=4)


@EXAMPLES
@given(st.text("ab", max_size=10).flatmap(pieces_of), st.lists(nonempty, max_size=4))
def test_pieces_and_the_whole_text_give_the_same(pieces: list[str], markers: list[str]) -> None:
    assert scan(pieces, markers) == first_completed("".join(pieces), markers)


@pytest.mark.parametrize(
    ("text", "held"),
    [("hello ", ""), ("hello S", "S"), ("hello STO", "STO"), ("STOSTO", "STO"), ("E", "E"), ("STOE", "E"), ("ES", "S")],
)
def test_only_the_beginning_of_a_marker_is_held_back(text: str, held: str) -> None:
    scanner = MarkerScanner(["STOP", "END"])
    assert scanner.feed(text) == (text.removesuffix(held), False)
    assert scanner.held == held


def test_without_markers_nothing_is_held_back() -> None:
    assert MarkerScanner([]).feed("<think>") == ("<think>", False)


def test_scanning_continues_after_a_marker() -> None:
    scanner = MarkerScanner(["|"])
    assert [scanner.feed("a|b|c"), scanner.feed(""), scanner.feed("d|")] == [("a", True), ("b", True), ("cd", True)]


def split(pieces: Iterable[str], opened: bool) -> tuple[str, str]:
    splitter = ThinkingSplitter(opened)
    parts = [*(splitter.feed(piece) for piece in pieces), splitter.flush()]
    return "".join(thinking for thinking, _ in parts), "".join(answer for _, answer in parts)


def split_whole(text: str, opened: bool) -> tuple[str, str]:
    if not opened:
        if not text.lstrip().startswith("<think>"):
            return "", text
        text = text.lstrip().removeprefix("<think>")
    thinking, _, answer = text.partition("</think>")
    return "".join(part.lstrip("\n") for part in thinking.split("<think>")), answer.lstrip("\n")


UNOPENED = [
    ("<think>\nhm\n</think>\n\nHi", "hm\n", "Hi"),
    ("\n <think>hm</think>Hi", "hm", "Hi"),  # white space before the tag
    ("<think> hm</think> Hi", " hm", " Hi"),  # only line breaks belong to the tags
    ("Hi\n\nyou", "", "Hi\n\nyou"),  # no thinking
    ("\n\nHi", "", "\n\nHi"),
    ("", "", ""),
    ("\n\n", "", "\n\n"),
    ("<think>\n\n</think>\n\nHi", "", "Hi"),  # an empty block
    ("<think></think>", "", ""),
    ("<think>\nhm", "hm", ""),  # never closed
    ("<think>hm</thi", "hm</thi", ""),
    ("<thi", "", "<thi"),
    ("<thinker> sat", "", "<thinker> sat"),
    ("</think>Hi", "", "</think>Hi"),  # never opened
    ("Write <think>a</think>", "", "Write <think>a</think>"),  # tags quoted in an answer
    ("<think>a</think><think>b</think>", "a", "<think>b</think>"),
    ("<think>a<think>b</think>c", "ab", "c"),  # a tag inside a block is not text
    ("<think>\n<think>\na\n<think>\nb</think>c", "a\nb", "c"),
    ("<think><think></think><think>", "", "<think>"),
    ("<think>a</think>\nb\n\nc\n", "a", "b\n\nc\n"),
]
OPENED = [
    ("hm\n</think>\n\nHi", "hm\n", "Hi"),
    ("\n\nhm</think>Hi", "hm", "Hi"),
    ("\n</think>\n\nHi", "", "Hi"),
    ("hm", "hm", ""),
    ("hm </thi", "hm </thi", ""),
    ("a</think>b</think>c", "a", "b</think>c"),
    ("<think>\nhm</think>c", "hm", "c"),  # the model repeats what the prompt opened
    ("", "", ""),
]
REPLIES = [(*reply, False) for reply in UNOPENED] + [(*reply, True) for reply in OPENED]


@pytest.mark.parametrize(("text", "thinking", "answer", "opened"), REPLIES)
def test_thinking_is_split_however_the_reply_is_cut(text: str, thinking: str, answer: str, opened: bool) -> None:
    ends = range(len(text) + 1)
    cuts = [[text[:i], text[i:j], text[j:]] for i in ends for j in ends[i:]]
    for pieces in [*cuts, list(text)]:
        assert split(pieces, opened) == (thinking, answer), pieces


parts = st.sampled_from(["<think>", "</think>", "<thi", "</", "\n", " ", "a", "<", ">"])
replies = st.lists(parts, max_size=9).map("".join)


@EXAMPLES
@given(replies.flatmap(pieces_of), st.booleans())
@example(["<think>", "\n", "\n</", "think>", "\n", "\n"], False)
def test_pieces_of_a_reply_and_the_whole_give_the_same(pieces: list[str], opened: bool) -> None:
    assert split(pieces, opened) == split_whole("".join(pieces), opened)


def test_thinking_and_answer_show_as_they_arrive() -> None:
    splitter = ThinkingSplitter()
    fed = [splitter.feed(piece) for piece in ["<think>", "so", " on", "</think>", "Hel", "lo <think"]]
    assert fed == [("", ""), ("so", ""), (" on", ""), ("", ""), ("", "Hel"), ("", "lo <think")]
    assert splitter.flush() == ("", "")


# Special tokens


def scan_pieces(pieces: list[Piece], stops: list[str]) -> tuple[list[Piece], bool]:
    scanner, result = StopScanner(stops), list[Piece]()
    for piece in pieces:
        before, found = scanner.feed(piece)
        result += before
        if found:
            return result, True
    return result + scanner.flush(), False


def visible(pieces: list[Piece]) -> str:
    return "".join(text for text, special in pieces if not special)


some_pieces = st.lists(
    st.one_of(st.tuples(st.text("ab", max_size=3), st.just(False)), st.just(("aba", True))), max_size=7
)


@EXAMPLES
@given(some_pieces, st.lists(nonempty, max_size=3))
@example([("b", False), ("aba", True), ("b", False)], ["bab"])
def test_stop_strings_are_found_across_special_tokens(pieces: list[Piece], stops: list[str]) -> None:
    """The text before a stop string comes out without special tokens, and a special token is whole or absent."""
    whole = "".join(text for text, _ in pieces)
    before, found, _ = first_completed(whole, stops)
    at, shown, tokens = 0, "", 0
    for text, special in pieces:
        if special:
            tokens += at + len(text) <= len(before)
        else:
            shown += text[: max(0, len(before) - at)]
        at += len(text)
    result, stopped = scan_pieces(pieces, stops)
    assert (visible(result), stopped) == (shown, found)
    assert [piece for piece in result if piece[1]] == tokens * [("aba", True)]


SPECIAL = [
    ([("<think>", True), ("hm", False), ("</think>", True), ("\nHi", False)], "hm", "Hi"),
    ([("\n", False), ("<think>", True), ("\nhm", False), ("<think>", True), ("\n.", False)], "hm.", ""),
    ([("<x>", True), ("<think>", False), ("a", False), ("<x>", True), ("b</think>c", False)], "ab", "c"),
    ([("<thi", False), ("<x>", True), ("nk>a", False)], "", "<think>a"),
    ([("<think>a</thi", False), ("<x>", True), ("nk>", False)], "a</think>", ""),
    ([("Hi", False), ("<think>", True), ("a", False), ("</think>", True)], "", "Hia"),
    ([("<think>", False), ("a", False), ("</think>", True), ("</think>", True), ("b", False)], "a", "b"),
]


@pytest.mark.parametrize(("pieces", "thinking", "answer"), SPECIAL)
def test_tags_may_be_special_tokens_and_others_are_dropped(pieces: list[Piece], thinking: str, answer: str) -> None:
    splitter = ThinkingSplitter()
    parts = [*(splitter.feed(*piece) for piece in pieces), splitter.flush()]
    assert ("".join(t for t, _ in parts), "".join(a for _, a in parts)) == (thinking, answer)


@pytest.fixture(scope="module", params=[(), ("<think>", "</think>"), ("<think>",)], ids=str)
def flagged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer whose tags are special tokens, or are not; each flag is said in another file."""
    folder = write_tokenizer(tmp_path_factory.mktemp("flagged"))
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"extra_special_tokens": list(request.param)}
    path.write_text(json.dumps(settings))
    return Tokenizer(folder)


def reply(tokenizer: Tokenizer, text: str, stop: tuple[str, ...] = ()) -> tuple[str, str, bool]:
    """(thinking, answer, whether a stop string ended it) of a reply that is the tokens of a text and an end token."""
    parts, result = [], ReplyText(tokenizer, stop)
    tokens = [*tokenizer.encode(text), 258]
    for count, token in enumerate(tokens, 1):
        parts.append(result.add(token, count == len(tokens)))
        if result.stopped:
            break
    return "".join(thinking for thinking, _ in parts), "".join(answer for _, answer in parts), result.stopped


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ((), ("a\n", "4 2.b", False)),
        (("2.",), ("a\n", "4 ", True)),
        (("</think>",), ("a\n", "", True)),
        (("<think>",), ("", "", True)),
        (("2.<|im_start|>",), ("a\n", "4 ", True)),
        (("<|im_start|>b", "none"), ("a\n", "4 2.", True)),
        (("im_start",), ("a\n", "4 2.", True)),
        (("b<|im_end|>",), ("a\n", "4 2.", True)),  # the end token
        (("2.b",), ("a\n", "4 2.b", False)),  # there is a token between them
    ],
)
def test_flags_change_no_stop_string_and_no_thinking(
    flagged: Tokenizer, stop: tuple[str, ...], expected: tuple[str, str, bool]
) -> None:
    assert reply(flagged, "<think>\na\n</think>\n\n4 2.<|im_start|>b", stop) == expected


def test_an_end_token_that_is_not_special_is_not_shown(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_tokenizer(tmp_path, eos_token_id=[ord("."), 260]))
    assert tokenizer.special.keys() == {256, 257, 258}
    result = ReplyText(tokenizer)
    assert [result.add(75), result.add(260, last=True)] == [("", tokenizer.decode([75])), ("", "")]


@pytest.mark.parametrize(
    ("text", "stop", "answer"),
    [
        ("<think>\na</think>\n\né\n.", (), "é\n."),  # parts of a character have no text yet
        ("<think>\na</think>\n\n4\n2.", ("4\n3",), "4\n2."),  # neither has what may be a stop string
        ("<think>\na</think>4\n", (), "4\n"),
    ],
)
def test_each_token_of_the_answer_is_told_from_the_tag(
    flagged: Tokenizer, text: str, stop: tuple[str, ...], answer: str
) -> None:
    result, found = ReplyText(flagged, stop), b""
    for token in flagged.encode(text):
        result.add(token)
        found += flagged.token_bytes(token) if result.part == "answer" else b""
    assert found.decode() == answer
