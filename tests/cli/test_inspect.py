"""`mlx-qwen3 inspect` as a user runs it: text, JSON, picture, page, exit codes."""

import html.parser
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints import AFFINE_4, TINY, VOCABULARY, random_weights, write_checkpoint, write_packed, write_tokenizer

from mlx_qwen3.inspect import Options, as_json, inspect, render, write_files
from mlx_qwen3.inspect.page import _table
from mlx_qwen3.inspect.pictures import draw
from mlx_qwen3.report import Table

ROOT = Path(__file__).parents[2]
CONFIG = {**TINY, "num_hidden_layers": 4, "vocab_size": VOCABULARY}


def run(*arguments, **options):
    command = [sys.executable, "-m", "mlx_qwen3", "inspect", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=120, cwd=ROOT, text=True, **options)


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return write_tokenizer(write_checkpoint(tmp_path_factory.mktemp("inspected") / "chat", CONFIG))


@pytest.fixture(scope="module")
def sick(tmp_path_factory):
    """A NaN in layer 2."""
    weights = random_weights(CONFIG)
    weights["model.layers.2.mlp.up_proj.weight"][0, 0] = math.nan
    return write_tokenizer(
        write_checkpoint(tmp_path_factory.mktemp("inspected") / "a <b>sick</b> one", CONFIG, weights)
    )


def test_everything_is_on_stdout(chat):
    result = run(chat, "--prompt", "hello", "--layer", "3")
    assert (result.returncode, result.stderr) == (0, "")
    for text in (
        "the prompt in the chat template, [1, 24] tokens, in float32",
        "model.layers.{0-3}.self_attn.q_proj.weight",
        f"total: 46 tensors, {sum(w.size for w in random_weights(CONFIG).values()):,} parameters",
        "Shape flow of layer 3",
        "query heads 0-2 read kv head 0, 3-5 read kv head 1",
        "Numbers of layer 3",
        "Numbers after the last layer",
        "All layers",
        "RMS(q_norm.weight)",  # why QK-norm scales q and k
        "no fault",
        "fp16: fits",
    ):
        assert text in result.stdout


def rows(text, title):
    """The lines of a table by their first word."""
    lines = text.split(title, 1)[1].splitlines()[1:]
    body = lines[: lines.index("")] if "" in lines else lines
    return {line[2:].split()[0]: line[2:] for line in body}


def test_the_shape_flow_at_a_batch_and_length(chat):
    result = run(chat, "--batch", "2", "--length", "9")
    flow = rows(result.stdout, "Shape flow of layer 0")
    assert "random tokens [2, 9], seed 0" in result.stdout
    assert "[2, 9, 200]" in flow["qkv"]
    assert "[2, 6, 9, 20]" in flow["q_heads_transposed"]
    assert "[2, 2, 9, 20]" in flow["k_heads_transposed"]
    assert "[2, 6, 9, 9]" in flow["scores"]
    assert "[2, 9, 307]" in flow["logits"]


def test_full_and_heads_show_all(chat):
    short, full = (render(inspect(chat, Options(heads=True)), full) for full in (False, True))
    for layer in range(4):
        assert f"Numbers of layer {layer} per head" in full
        assert f"model.layers.{layer}.self_attn.q_proj.weight" in full
    assert "Numbers of layer 1" not in short
    per_head = short.split("Numbers of layer 0 per head", 1)[1].split("\n\n")[0]
    counts = {name: sum(line.split()[0] == name for line in per_head.splitlines()[2:]) for name in ("q_norm", "k_rope")}
    assert counts == {"q_norm": 6, "k_rope": 2}
    assert sum("first_token" in line for line in per_head.splitlines()) == 6


def test_json_is_strict_and_whole(sick):
    result = run(sick, "--prompt", "hello", "--heads", "--json", "--against", "transformers")

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    report = json.loads(result.stdout, parse_constant=refuse)
    assert result.stdout.count("\n") == 1
    first = report["first_fault"]
    assert (first["layer"], first["step"]) == (2, "gate_up")
    assert {entry["layer"] for entry in report["numbers"]} == {0, 1, 2, 3, None}
    assert {entry["head"] for entry in report["heads"] if entry["step"] == "scores"} == set(range(6))
    assert report["comparison"]["first_outside"] is None  # transformers computes the same NaN
    assert len(report["weights"]["tensors"]) == 46
    assert {"step": "qkv", "layer": 0, "shape": [1, 24, 200], "dtype": "float32"} in report["flow"]
    entry = next(n for n in report["numbers"] if (n["layer"], n["step"]) == (1, "q_rope"))
    assert entry.keys() >= set("mean std rms min max nan inf zeros abs_max verdict reasons".split())


def test_strict_is_exit_code_1_and_one_line(sick, chat):
    result = run(sick, "--strict")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: first fault in layer 2, gate_up: ")
    assert "FAULT: first in layer 2, gate_up" in result.stdout
    assert run(sick).returncode == 0
    assert run(chat, "--strict").returncode == 0


def test_strict_comparison(chat, tmp_path):
    weights = random_weights(CONFIG)
    names = [f"model.layers.1.self_attn.{name}_norm.weight" for name in "qk"]
    weights |= {names[0]: weights[names[1]], names[1]: weights[names[0]]}
    swapped = write_checkpoint(tmp_path / "swapped", CONFIG, weights)
    result = run(swapped, "--against", chat, "--strict", "--batch", "2", "--length", "11")
    assert result.returncode == 1
    assert f"first difference from {chat} in layer 1, q_norm" in result.stderr
    assert f"first difference from {chat} in layer 1, q_norm" in result.stdout


def test_a_checkpoint_without_tokenizer_or_template(chat, tmp_path):
    plain = write_checkpoint(tmp_path / "plain", CONFIG)
    assert run(plain, "--strict").returncode == 0
    result = run(plain, "--prompt", "hi")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "tokenizer.json does not exist" in result.stderr
    write_tokenizer(plain)
    settings = json.loads((plain / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (plain / "tokenizer_config.json").write_text(json.dumps(settings))
    assert (
        "the prompt as it is: this checkpoint has no chat template, [1, 2] tokens"
        in run(plain, "--prompt", "hi").stdout
    )


def test_a_prompt_from_standard_input(chat):
    assert "[1, 24] tokens" in run(chat, "--prompt", "-", input="hello").stdout


def test_random_tokens_are_of_the_tokenizer(chat):
    """Ids from 261 up are padding rows of the embedding."""
    from mlx_qwen3.files.config import Qwen3Config
    from mlx_qwen3.inspect.report import _tokens

    ids, _ = _tokens(chat, Qwen3Config.from_folder(chat), Options(batch=4, length=500))
    assert ids.max().item() == 260


ERRORS = {
    "layer": (["--layer", "4"], 2, "--layer is 4; this model has layers 0 to 3"),
    "negative layer": (["--layer", "-1"], 2, "--layer is -1"),
    "head": (["--head", "6"], 2, "--head is 6; this model has heads 0 to 5"),
    "batch": (["--batch", "0"], 2, "--batch is 0; expected 1 or more"),
    "length": (["--length", "-3"], 2, "--length is -3"),
    "long": (["--length", "50000"], 2, "the context of this model has 40960 tokens"),
    "length of a prompt": (["--prompt", "x", "--length", "3"], 2, "--length is for random tokens"),
    "batch of a prompt": (["--prompt", "x", "--batch", "3"], 2, "--batch is for random tokens"),
    "rules": (["--rules", "/nowhere.json"], 2, "rules /nowhere.json cannot be read"),
    "against": (["--against", "/nowhere"], 1, "there is no folder '/nowhere'"),
    "plot name": (["--plot", "picture.jpg"], 2, "--plot is picture.jpg; expected a name that ends in .png"),
    "plot folder": (["--plot", "/nowhere/p.png"], 1, "/nowhere is not a folder"),
    "html folder": (["--html", "/"], 1, "/ is a folder; give a file name"),
    "long prompt": (["--prompt", "x" * 50_000], 1, "which fill the context of 40960"),
}


@pytest.mark.parametrize(("arguments", "code", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_an_error_is_one_line_with_its_exit_code(arguments, code, message, chat):
    result = run(chat, *arguments)
    assert (result.returncode, result.stdout) == (code, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def test_without_matplotlib_one_line_says_what_to_install(chat, tmp_path):
    program = "import sys; sys.modules['matplotlib'] = None; from mlx_qwen3.cli.app import cli; cli(sys.argv[1:])"
    for option in ("--plot", "--html"):
        command = [sys.executable, "-c", program, "inspect", str(chat), option, str(tmp_path / "x.png")]
        result = subprocess.run(command, capture_output=True, cwd=ROOT, text=True)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)
        assert "pip install 'mlx-qwen3[plot]'" in result.stderr


def test_plain_inspect_needs_neither_matplotlib_nor_torch(chat):
    program = (
        "import sys; sys.modules['matplotlib'] = sys.modules['torch'] = None\n"
        "from mlx_qwen3.cli.app import cli; cli(sys.argv[1:])"
    )
    command = [sys.executable, "-c", program, "inspect", str(chat), "--heads"]
    assert subprocess.run(command, capture_output=True, cwd=ROOT).returncode == 0


def test_picture_and_page(sick, tmp_path):
    result = run(sick, "--prompt", "hello", "--plot", tmp_path / "p.png", "--html", tmp_path / "p.html", "--head", "3")
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG\r\n")
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "a <b>sick</b> one" not in page  # all text is escaped
    assert "a &lt;b&gt;sick&lt;/b&gt; one" in page
    assert 'src="data:image/png;base64,' in page
    for title in ("Weights, as stored", "Shape flow of layer 0", "Numbers of layer 0", "All layers", "FAULT: first in"):
        assert title in page


def test_cells_are_escaped_too():
    table = Table("<i>", ("<u>", "x"), [["<b>", "&"]], "ll", notes=("<p>",))
    assert _table(table).count("&lt;") == 4
    assert "&amp;" in _table(table)


class Links(html.parser.HTMLParser):
    """Collects whatever a page would load, and the tags that are open."""

    def __init__(self):
        super().__init__()
        self.loads, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_self_contained_and_well_formed(chat, tmp_path):
    write_files(inspect(chat, Options(heads=True, against=str(chat))), None, tmp_path / "p.html", full=True)
    parser = Links()
    parser.feed((tmp_path / "p.html").read_text(encoding="utf-8"))
    assert parser.open == []
    assert [link[:22] for link in parser.loads] == ["data:image/png;base64,"]


def test_the_picture_marks_what_is_out_of_range(tmp_path):
    """In the heat map of std, a red box where v of layer 2 exploded and nowhere else, and dots on what is unusual."""
    weights = random_weights(CONFIG)
    weights["model.layers.2.self_attn.v_proj.weight"] *= 30
    weights["model.layers.1.self_attn.v_proj.weight"] *= 4
    figure = draw(inspect(write_checkpoint(tmp_path, CONFIG, weights), Options()))
    heat_map, others = figure.axes[0], figure.axes
    labels = [label.get_text() for label in heat_map.get_xticklabels()]
    boxes = [(round(box.get_y() + 0.5), labels[round(box.get_x() + 0.5)]) for box in heat_map.patches]
    dots = [(line.get_ydata()[0], labels[line.get_xdata()[0]]) for line in heat_map.lines]
    assert boxes == [(2, "v_heads")]
    assert dots == [(1, "v_heads")]
    titles = " ".join(axes.get_title() for axes in others)
    for words in ("standard deviation", "largest magnitude", "|mean|", "attention map, layer 0, head 0", "over depth"):
        assert words in titles
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in others if axes.get_title().startswith("attention"))
    assert "first fault in layer 2, v_heads" in figure.get_suptitle()


def test_the_picture_marks_nan_in_every_heat_map(sick):
    heat_maps = [axes for axes in draw(inspect(sick, Options())).axes if "red box" in axes.get_title()]
    assert len(heat_maps) == 3
    for axes in heat_maps:
        labels = [label.get_text() for label in axes.get_xticklabels()]
        boxes = {(round(box.get_y() + 0.5), labels[round(box.get_x() + 0.5)]) for box in axes.patches}
        assert {(2, "gate_up"), (2, "down"), (3, "input")} <= boxes
        assert min(layer for layer, _ in boxes) == 2


def test_the_residual_norm_and_the_map_are_the_reports(chat):
    report = inspect(chat, Options(layer=2, head=5))
    figure = draw(report)
    by_title = {axes.get_title(): axes for axes in figure.axes}
    line = by_title["residual stream over depth"].lines[0]
    wanted = [report.numbers.overall[(0, "input")].rms]
    wanted += [report.numbers.overall[(layer, "output")].rms for layer in range(4)]
    np.testing.assert_allclose(line.get_ydata(), wanted)
    image = by_title["attention map, layer 2, head 5: who looks at whom"].images[0]
    np.testing.assert_allclose(np.square(image.get_array()), report.numbers.attention_map, atol=1e-12)


@pytest.mark.parametrize("odd", ["packed", "one layer, one head", "all NaN", "infinite"])
def test_odd_models_have_reports_and_pictures_too(odd, tmp_path):
    if odd == "packed":
        folder = write_packed(tmp_path / "odd", AFFINE_4)
    elif odd == "one layer, one head":
        heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
        folder = write_checkpoint(tmp_path / "odd", num_hidden_layers=1, **heads)
    else:
        weights = random_weights(TINY)
        weights["model.embed_tokens.weight"][:] = math.nan if odd == "all NaN" else math.inf
        folder = write_checkpoint(tmp_path / "odd", weights=weights)
    report = inspect(folder, Options(length=1, heads=True, against=str(folder)))
    json.dumps(as_json(report), allow_nan=False)
    assert "Verdict" in render(report, full=True)
    write_files(report, tmp_path / "p.png", tmp_path / "p.html", True)
    assert (report.first_fault is not None) == (odd in ("all NaN", "infinite"))
