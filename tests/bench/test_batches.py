"""Many requests at once, with real contestants on a tiny model. Nothing here depends on a speed."""

import re

import pytest
from benching import QUICK, TWICE, UNTIED, main, planted
from checkpoints import TINY, random_weights, write_checkpoint

from mlx_qwen3 import bench
from mlx_qwen3.errors import BenchError

ROWS = {**QUICK, "repeat": 1, "rows": (3,)}


def test_who_can_batch_is_measured_and_compared(everything):
    rows = {row["name"]: row for row in everything.content["contestants"]}
    assert {name: [run["rows"] for run in row["batches"]] for name, row in rows.items()} == {
        "mlx-qwen3": [1, 3],
        "transformers": [],
        "reference": [],
        "mlx-lm": [1, 3],
    }
    found = [output for output in rows["mlx-lm"]["outputs"] if output["rows"]]
    assert [(output["rows"], output["agree"], output["parting"]) for output in found] == [
        (1, True, None),
        (3, True, None),
    ]
    assert all(0 < output["relative"] < 1e-5 and output["compared"] == 12 for output in found)


def test_the_table_and_who_is_left_out(everything):
    [table] = re.findall(r"### Many requests at once, each with a prompt of 5 tokens\n\n((?:\|.*\n)+)", everything.out)
    head, _, ours, theirs = table.splitlines()
    assert head == "|  | dtype | 1 row, tok/s | 3 rows, tok/s | 3 / 1 |"
    assert re.fullmatch(r"\| mlx-qwen3 \| float32 \| [\d.,]+ \| [\d.,]+ \| [\d.]+ \|", ours)
    assert re.fullmatch(r"\| mlx-lm \| float32 \| [\d.,]+ x[\d.]+ \| [\d.,]+ x[\d.]+ \| [\d.]+ \|", theirs)
    assert (
        "- mlx-lm, 5 prompt tokens: 3 rows at once, the worst: the first 12 greedy tokens are equal" in everything.out
    )
    for name in ("transformers", "reference"):
        assert f"- {name} has no batch that requests join and leave: it is left out of --rows" in everything.out


def test_ratios_are_in_the_summary(everything):
    summary = everything.content["contestants"][3]["summary"]
    assert {"1 row", "3 rows"} < set(summary)
    assert summary["3 rows"]["rows_tps"]["ratio"]["median"] > 0


def test_no_speed_of_rows_that_are_mixed_up(tmp_path, monkeypatch):
    chat = write_checkpoint(tmp_path / "one", weights=random_weights({**TINY, **UNTIED}, seed=3), **UNTIED)

    def mixed(ask):
        answer = ask()
        return {**answer, "tokens": answer["tokens"][::-1]}

    planted(monkeypatch, "batch", mixed)
    report = bench.bench(bench.Options(str(chat), **ROWS))
    [found] = [output for output in report.rows[1].outputs if output.rows]
    assert (found.agree, found.rows, report.rows[1].batches) == (False, 3, [])
    table = bench.page(report, brief=False).markdown().split("Many requests at once")[1]
    assert f"| {TWICE} | bfloat16 | outputs differ |" in table
    before = bench.as_json(report)
    before["contestants"][1]["summary"]["3 rows"] = {"rows_tps": {"ratio": {"median": 2.0}}}
    with pytest.raises(BenchError, match="3 rows, many rows, tok/s: not measured, was 2"):
        bench.check(report, before, 0.1)


def test_ours_are_judged_too(tmp_path, monkeypatch):
    """If the rows of this package were mixed up, the others would be right, and no speed means anything."""
    chat = write_checkpoint(tmp_path / "one", weights=random_weights({**TINY, **UNTIED}, seed=3), **UNTIED)
    ask = bench.session.Worker.ask

    def mixed(self, command, **arguments):
        answer = ask(self, command, **arguments)
        wrong = (self.name, command) == ("mlx-qwen3", "batch")
        return {**answer, "tokens": answer["tokens"][::-1]} if wrong else answer

    monkeypatch.setattr(bench.session.Worker, "ask", mixed)
    report = bench.bench(bench.Options(str(chat), **ROWS))
    assert report.rows[1].batches == []


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1,x", "--rows is '1,x'; expected numbers with commas, such as 1,2,4,8,16"),
        ("0,2", "--rows is 0; expected 1 or more"),
        ("4,4", "--rows is '4,4'; expected different numbers up to 32"),
        ("64", "--rows is '64'; expected different numbers up to 32"),
    ],
)
def test_numbers_that_cannot_be_measured(bench_chat, capsys, nothing_runs, rows, message):
    assert main(bench_chat, "--rows", rows) == 2
    assert message in capsys.readouterr().err
