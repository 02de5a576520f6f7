"""The tables say what the routers did, and fit a terminal."""

import pytest
from checkpoints import TINY_MOE, random_weights, write_checkpoint

from mlx_qwen3.inspect import Options, inspect, render
from mlx_qwen3.inspect.router_tables import router_tables
from mlx_qwen3.table import spans

FORTY = {**TINY_MOE, "num_experts": 40, "mlp_only_layers": [1]}


@pytest.fixture(scope="module")
def forty(tmp_path_factory):
    """40 experts; the router of layer 2 never chooses 11, 12 and 30, and has expert 7 for all tokens."""
    weights = random_weights(FORTY)
    weights["model.embed_tokens.weight"][:, 0] = 3
    gate = weights["model.layers.2.mlp.gate.weight"]
    weights["model.layers.0.mlp.gate.weight"][:, 0] = 0
    gate[:, 0], gate[[11, 12, 30], 0], gate[7, 0] = 0, -9, 9
    return write_checkpoint(tmp_path_factory.mktemp("forty"), FORTY, weights)


@pytest.fixture(scope="module")
def report(forty):
    return inspect(forty, Options(length=300))


def cells(table, row):
    return dict(zip(table.columns, table.rows[row], strict=True))


def test_a_row_for_each_layer_with_experts(report):
    table = next(router_tables(report, False))
    for index, (layer, router) in enumerate(report.numbers.routers.items()):
        found = cells(table, index)
        assert (found["layer"], found["busiest"]) == (str(layer), str(router.busiest))
        assert found["unused"] == str(len(router.unused))
        counts = [int(found[name]) for name in ("unused", "below 0.5", "0.5 to 2", "above 2")]
        assert sum(counts) == 40
        assert float(found["entropy"]) == pytest.approx(router.entropy, abs=0.01)
    assert [row[0] for row in table.rows] == ["0", "2"]
    assert cells(table, 1)["its share"] == "100.0%"


def test_notes_name_what_is_unusual_and_the_experts_that_nobody_chose(report):
    text = next(router_tables(report, False)).text()
    assert "unusual: layer 2: expert 7 gets 100% of the tokens, an even share is 8%" in text
    unused = report.numbers.routers[2].unused
    assert {11, 12, 30} <= set(unused)
    assert f"layer 2: no token for experts {spans(unused).replace(',', ', ')}" in text
    assert "300 tokens, 3 of 40 experts for each: an even share is 7.5% of the tokens, 22.5" in text
    layer, place = min(
        (router.margins.min(), (layer, router.closest)) for layer, router in report.numbers.routers.items()
    )[1]
    assert f"closest choice: layer {layer}, token {place[1]} of row {place[0]}" in text


@pytest.mark.parametrize("full", [False, True])
def test_the_experts_of_a_layer(full, report):
    tables = list(router_tables(report, full))
    assert [table.title for table in tables[1:]] == [
        f"Experts of layer {layer}, the busiest first" for layer in ([0, 2] if full else [0])
    ]
    table, router = tables[1], report.numbers.routers[0]
    assert [int(row[1]) for row in table.rows] == sorted(router.load.tolist(), reverse=True)[: None if full else 16]
    assert {row[0]: int(row[1]) for row in table.rows}.items() <= dict(
        zip(map(str, range(40)), router.load.tolist(), strict=True)
    ).items()
    assert ("--full shows all" in table.text()) != full
    assert table.rows[0][4] == "#" * 24


def test_a_layer_with_a_dense_mlp_has_no_table_of_experts(forty):
    assert len(list(router_tables(inspect(forty, Options(layer=1)), False))) == 1


def test_a_short_prompt_is_not_judged(forty):
    report = inspect(forty, Options())
    assert "loads are not judged: an even share is less than 16 tokens" in next(router_tables(report, False)).text()
    assert report.verdicts[2, "chosen_experts"].level == "normal"


def test_the_verdict_of_a_layer_names_its_router(report):
    assert report.complaint is None  # rules of thumb, not faults
    layers = render(report).split("\nAll layers\n")[1].splitlines()[1:4]
    assert [("chosen_experts" in line) for line in layers] == [False, False, True]


def test_the_choices_of_a_decode_step(forty):
    report = inspect(forty, Options(length=5, batch=2, decode=3))
    [table] = router_tables(report, False)
    assert [(row[0], row[1]) for row in table.rows] == [("0", "0"), ("0", "1"), ("2", "0"), ("2", "1")]
    router = report.numbers.routers[2]
    experts = [part.split()[0] for part in table.rows[2][2].split(", ")]
    assert sorted(map(int, experts)) == router.chosen[0, 0].tolist()
    assert experts[0] == "7"  # the one with the largest weight is first
    assert table.rows[2][3] == str(router.following[0, 0])


def test_the_tables_fit_80_columns(forty, report):
    step = inspect(forty, Options(length=5, decode=3))
    for table in (*router_tables(report, True), *router_tables(step, True)):
        assert max(map(len, table.text(80).splitlines())) <= 80


def test_a_dense_model_has_none(tiny):
    assert list(router_tables(inspect(tiny, Options()), True)) == []
