"""The pages: links, examples, the files, options and messages that they name, and what commands print into them."""

import ast
import importlib.util
import re
import runpy
import shlex
import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest

from docs import first_run, inspect_pictures
from docs.models import DENSE, Shape
from docs.refresh import SCRIPT, refreshed
from mlx_qwen3.cli.app import COMMANDS, cli
from mlx_qwen3.conversion.convert import convert, dry_plan
from mlx_qwen3.engine.memory import Costs
from mlx_qwen3.files.hub import PACKAGED, resolve
from mlx_qwen3.inspect import inspect
from mlx_qwen3.model.load import load_model

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("dev/*.md")])
PAGES += [folder / "README.md" for folder in PACKAGED.values()]
FOLDERS = ("benchmarks", "dev", "docs", "mlx_qwen3", "tests", "training")  # of the repository, as pages name them
CODE = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """A page without its code blocks, where `#` is not a heading and brackets are not links."""
    return CODE.sub("", text(page))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f"{target} does not exist"
        assert not anchor or anchor in anchors(place), f"{target}: {place.name} has {sorted(anchors(place))}"


@each_page
def test_files_that_a_page_names_exist(page):
    """A path that begins with a folder of the repository, and every Python file, by the end of its path."""
    files = [path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")]
    files += [path.name for path in ROOT.glob("*.*")]
    for name in re.findall(r"`((?:[\w-]+/)*[\w-]+\.\w+)`", prose(page)):
        if name.endswith(".py") or name.startswith(tuple(f"{folder}/" for folder in FOLDERS)):
            assert any(f"/{path}".endswith(f"/{name}") for path in files), f"{name} does not exist"


def commands(page: Path) -> list[list[str]]:
    """Every command line of this package in a page, its name first: ["convert", "demo", "out", ...]."""
    code = [block for _, block in CODE.findall(text(page))] + re.findall(r"`([^`\n]+)`", prose(page))
    lines = [line.removeprefix("$ ") for block in code for line in block.splitlines()]
    found = [re.search(r"(?:mlx-qwen3|-m mlx_qwen3|python (?=generate\.py|convert\.py)) ?(.*)", line) for line in lines]
    words = [re.sub(r"  #.*| *&& .*|\| .*", "", match[1]).replace(".py", "") for match in found if match]
    return [shlex.split(line) for line in words if line.split()[:1] and line.split()[0] in COMMANDS]


@each_page
def test_options_that_a_page_names_exist(page):
    for name, *words in commands(page):
        command = cli.get_command(None, name)
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        unknown = {word.split("=")[0] for word in words if word.startswith("--")} - known - {"--help"}
        assert not unknown, f"{name} has no {sorted(unknown)}"


@pytest.mark.parametrize("page", ["README.md", "docs/python.md", "docs/inside-qwen3.md", "docs/structured-output.md"])
def test_python_examples_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for language, code in CODE.findall(text(ROOT / page)):
        if language == "python":
            exec(compile(code.replace("Qwen/Qwen3-0.6B", "demo"), page, "exec"), names)
    assert len(names) > 1


def test_the_first_screen_of_the_readme():
    """Its status and the two commands that a newcomer runs, within 30 lines."""
    first = "\n".join(text(ROOT / "README.md").splitlines()[:30])
    for line in (
        'pip install -e . && python generate.py --prompt "What is 17 + 25?"',
        "pip install -e '.[test]' && pytest",
        "nothing here has run on Metal yet",
    ):
        assert line in first


def test_error_texts_are_those_of_the_package():
    source = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "mlx_qwen3").rglob("*.py"))
    for heading in re.findall(r"^### `(.+)`$", text(ROOT / "docs/troubleshooting.md"), re.MULTILINE):
        assert heading in source, f"no message has {heading!r}"


def printed_into_pages() -> list[str]:
    return [page.name for page in PAGES if SCRIPT.search(text(page)) and page.parent == ROOT / "docs"]


@pytest.mark.parametrize("name", printed_into_pages())
def test_what_scripts_print_into_a_page_is_up_to_date(name):
    page = text(ROOT / "docs" / name)
    only_scripts = re.sub(r"```text\n\$ mlx-qwen3.*?```", "", page, flags=re.DOTALL)  # those run whole models
    assert refreshed(only_scripts, {}) == only_scripts, "run python docs/refresh.py"


def test_the_memory_of_models_is_that_of_a_conversion(tmp_path):
    """The formula of docs/models.py against the plan of a real conversion."""
    demo = Shape("demo", 5, 256, 4, 2, 768, True)
    size = {"VOCABULARY": 2560, "HEAD_DIM": 96}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in size.items():
            patch.setattr(f"docs.models.{name}", value)
        for bits, mode in {16: None, 8: "affine8", 6: "affine6", 4: "affine4"}.items():
            planned = dry_plan(resolve("demo"), tmp_path / "out", quantize=mode)
            assert demo.weight_bytes(bits) == planned.bytes


def test_the_memory_of_models_is_that_of_the_budget(tmp_path):
    """The table's formulas against what the engine counts: a bf16 demo, its cache as it is and quantized."""
    demo = Shape("demo", 5, 256, 4, 2, 768, True)
    convert("demo", tmp_path / "out", dtype="bf16", divergence=False)
    model = load_model(tmp_path / "out", "bf16")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("docs.models.VOCABULARY", 2560)
        patch.setattr("docs.models.HEAD_DIM", 96)
        # The demo's head_dim of 96 is no multiple of 64. So its groups are of 32, with 1 bit for each value.
        for bits, stored in {None: 16, 8: 9, 4: 5}.items():
            costs = Costs.of(model, bits)
            assert costs.weights == demo.weight_bytes(16)
            assert costs.cache(1, 1024) == demo.cache_bytes(1024) * stored / 16


def test_parameters_of_the_releases():
    """As the model cards count them."""
    counts = {shape.name: shape.parameters() for shape in DENSE}
    assert counts["0.6B"] == 596_049_920
    assert counts["4B"] == counts["4B-2507"] == 4_022_468_096
    assert counts["32B"] == 32_762_123_264


def test_every_flag_of_mlx_lm_has_its_line():
    if not (found := importlib.util.find_spec("mlx_lm")):
        pytest.skip("mlx-lm is not installed")
    folder, page = Path(found.submodule_search_locations[0]), text(ROOT / "docs/from-mlx-lm.md")
    for command in ("generate", "convert", "server"):
        flags = re.findall(r"add_argument\(\s*(?:\"-\w+\",\s*)?\"(--[\w-]+)\"", text(folder / f"{command}.py"))
        assert len(flags) > 10
        assert not [flag for flag in flags if f"`{flag}" not in page], command
    names = re.search(r"subcommands = \((.*?)\)", text(folder / "cli.py"), re.DOTALL)[1]
    for command in re.findall(r'"(\w+)"', names):
        assert re.search(rf"\b{command}\b", page), f"the page says nothing of mlx_lm {command}"


# --- scripts and pictures

SCRIPTS = sorted(
    path
    for folder in ("docs", "benchmarks", "training")
    for path in (ROOT / folder).glob("*.py")
    if "__main__" in text(path)
)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_script_has_a_help_text(path, monkeypatch, capsys):
    """Its docstring, its usage, and a word on each option."""
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])
    monkeypatch.delitem(sys.modules, "conversion", raising=False)  # a folder of tests/, and a neighbour of a script
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    assert end.value.code in (0, None)
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: {path.name} [-h]")
    assert ast.get_docstring(ast.parse(text(path))).splitlines()[0] in shown
    rows = re.findall(r"^  (\S.*)\n(?!      )", shown.partition("options:")[2], re.MULTILINE)
    assert all("  " in row for row in rows), rows


LINES = "using\x1b[2m grey\r\nmore\r\n\x1b[0m\r\nplain <b>\r\n\r\n\x1b[31mred\x1b[0m\r\n"


def test_a_recording_keeps_its_lines_and_styles():
    grey, red = first_run.STYLES["2"], first_run.STYLES["31"]
    assert first_run.spans(LINES) == [
        [("using", ""), (" grey", grey)],
        [("more", grey)],
        [],
        [("plain <b>", "")],
        [],
        [("red", red)],
    ]


@pytest.mark.parametrize("odd", ["\x1b[2Kx", "50 %\r60 %", "\x1b[7mx", "x" * 81])
def test_what_the_picture_could_not_show_is_an_error(odd):
    with pytest.raises(SystemExit, match=r"cannot draw|does not fit"):
        first_run.spans(odd)


def texts(picture: str) -> list[tuple[str, str]]:
    """Each text with its height."""
    elements = xml.etree.ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")
    return [(element.get("y") or "", element.text or "") for element in elements]


def test_the_picture_of_the_first_command_shows_what_it_prints():
    """The speed aside: the notes, the thinking and the answer of today."""
    now = first_run.drawn(first_run.COMMAND, first_run.recorded(first_run.COMMAND))
    made, kept = texts(now), texts(text(ROOT / "docs" / "first-run.svg"))
    assert made[:-1] == kept[:-1], "run python docs/first_run.py"
    assert first_run.COMMAND in text(ROOT / "README.md")
    speeds = [re.sub(r"[\d.]+", "#", lines[-1][1]) for lines in (made, kept)]
    assert speeds == ["# tokens, # tok/s, first after # s"] * 2


def test_the_picture_of_inspect_has_the_tokens_of_the_prompt():
    picture = text(ROOT / "docs" / "inspect-demo.svg")
    made = texts(inspect_pictures.beside(inspect("demo", inspect_pictures.OPTIONS)))
    kept = [words for _, words in texts(picture)]
    assert [words for _, words in made] == kept, "run python docs/inspect_pictures.py"
    assert "␣is" in kept
    assert "prefers-color-scheme: dark" in picture
