"""The pool: loaded on first use, as many as fit, the least recently used one goes."""

import asyncio
import json
import logging

import pytest
from adapting import write_peft
from serving import serving

from mlx_qwen3 import SamplingParams, blas, generate, load
from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.errors import CheckpointError, EngineError, MemoryBudgetError, SourceError, UsageError
from mlx_qwen3.files.hub import DEMO
from mlx_qwen3.model import kernels
from mlx_qwen3.server.errors import ApiError
from mlx_qwen3.server.models import Pool

THREE = {"a": "demo", "b": "demo", "c": "demo"}  # 20.33 MB each, as float32


def pool(memory="60MB", **options):
    return Pool(THREE, dtype="fp32", memory=memory, **options)


async def touch(models, name):
    async with models.use(name) as loaded:
        return loaded


def names(models):
    return [loaded.name for loaded in models.loaded]


@pytest.mark.parametrize(("memory", "most"), [("22MB", 1), ("41MB", 1), ("60MB", 2), ("80MB", 3), ("1GB", 3)])
def test_as_many_fit_as_leave_room_for_caches(memory, most):
    assert pool(memory).most == most


def test_packed_weights_count_as_they_are_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "on_gpu", lambda: False)
    monkeypatch.setattr(blas, "lacking", lambda: False)
    convert("demo", tmp_path / "packed", quantize="affine4", divergence=False)
    sources = {"a": str(tmp_path / "packed"), "b": str(tmp_path / "packed")}

    def of(memory, weights=None):
        return Pool(sources, dtype="fp32", memory=memory, weights=weights)

    assert [of(memory).most for memory in ("20MB", "100MB")] == [2, 2]
    assert [of("24MB", weights).most for weights in ("packed", "unpacked")] == [2, 1]
    with pytest.raises(
        MemoryBudgetError, match=r"^the weights of a, unpacked, take 20\.33 MB and .* leave them packed"
    ):
        of("10MB", "unpacked")

    async def run(models):
        loaded = await touch(models, "a")
        await models.close("over")
        return loaded.model.unpacked, loaded.memory

    for models, unpacked in ((of("100MB"), True), (of("20MB"), False), (of("100MB", "packed"), False)):
        assert asyncio.run(run(models)) == (unpacked, models._weights["a"].nbytes + models._share)


def test_the_least_recently_used_one_makes_room():
    async def run():
        models = pool()
        seen = []
        for name in ("a", "b", "a", "c", "b"):
            loaded = await touch(models, name)
            assert loaded.engine.alive
            seen.append(sorted(names(models)))
        await models.close("over")
        return seen

    assert asyncio.run(run()) == [["a"], ["a", "b"], ["a", "b"], ["a", "c"], ["b", "c"]]


def test_a_model_in_use_stays_and_who_needs_the_room_waits():
    async def run():
        models = pool("30MB")
        async with models.use("a") as held:
            waiting = asyncio.create_task(touch(models, "b"))
            again = asyncio.create_task(touch(models, "a"))  # if it went first, the other might wait for ever
            for _ in range(20):
                await asyncio.sleep(0)
            assert not waiting.done()
            assert not again.done()
            assert held.engine.alive
        assert (await waiting).name == "b"
        assert (await again).name == "a"
        assert not held.engine.alive
        await models.close("over")

    asyncio.run(run())


def test_an_idle_model_goes_and_comes_back():
    async def run():
        models = pool(idle=0.05)
        watching = asyncio.create_task(models.watch())
        first = await touch(models, "a")
        while models.loaded:
            await asyncio.sleep(0)
        async with models._lock:  # which it holds until all is done
            pass
        assert not first.engine.alive
        async with models.use("a") as held:
            await asyncio.sleep(0.1)  # twice the time after which it would go
            assert models.loaded == [held]
        watching.cancel()
        await models.close("over")

    asyncio.run(run())


def test_after_the_end_there_is_no_model():
    async def run():
        models = pool()
        loaded = await touch(models, None)
        assert loaded.name == "a"
        await models.close("the server was stopped")
        assert not loaded.engine.alive
        with pytest.raises(EngineError, match="the server was stopped"):
            await touch(models, "a")

    asyncio.run(run())


def test_a_source_names_its_model_too():
    models = Pool({"small": "demo"})
    assert models.check_name("demo") == models.check_name("small") == models.check_name(None) == "small"
    assert pool().check_name("demo") == "a"


def test_a_name_that_is_not_there():
    with pytest.raises(ApiError, match=r"there is no model 'd'; this server has a, b, c"):
        pool().check_name("d")


def test_sources_are_checked_before_anything_is_loaded():
    with pytest.raises(SourceError):
        Pool({"a": "demo", "b": "/no/where"})
    with pytest.raises(MemoryBudgetError, match=r"the weights of a take 20.33 MB and the memory budget is 10.00 MB"):
        pool("10MB")


def test_several_models_are_served_by_name():
    with serving(THREE, memory="60MB", preload=False) as served:
        assert served.ask("/health")[1] == {"status": "ok", "models": {}}
        assert [model["id"] for model in served.ask("/v1/models")[1]["data"]] == ["a", "b", "c"]
        for name in ("b", "c", "a"):
            assert served.chat("hello", model=name, max_tokens=1)["model"] == name
        assert sorted(loaded.name for loaded in served.pool.loaded) == ["a", "c"]
        assert served.chat("hello", max_tokens=1)["model"] == "a"


# --- adapters


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    config = json.loads((DEMO / "config.json").read_text())
    return str(write_peft(tmp_path_factory.mktemp("adapter"), model=config))


def test_an_adapter_is_a_model_beside_its_base(adapter, caplog):
    caplog.set_level(logging.INFO, "mlx_qwen3.server")
    with serving(adapters={"tuned": f"{adapter}=8", "half": f"{adapter}=4"}) as server:
        _, listed = server.ask("/v1/models")
        assert [(m["id"], m.get("parent")) for m in listed["data"]] == [
            ("demo", None),
            ("tuned", "demo"),
            ("half", "demo"),
        ]
        assert server.ask("/v1/models/tuned")[1] == listed["data"][1]
        replies: dict[str, str] = {}
        for name in ("demo", "tuned", "half", "demo", "tuned"):
            asked = {"prompt": "What is 17", "model": name, "temperature": 0, "max_tokens": 12}
            status, answer = server.ask("/v1/completions", asked)
            assert (status, answer["model"]) == (200, name)
            text = answer["choices"][0]["text"]
            assert replies.setdefault(name, text) == text
        assert len(set(replies.values())) == 3
        assert server.chat("What is 17 + 25?", model="tuned", max_tokens=2)["model"] == "tuned"
        events = server.events("/v1/completions", {"prompt": "a", "model": "half", "max_tokens": 2})
        assert {event["model"] for event in events} == {"half"}
        status, refused = server.ask("/v1/completions", {"model": "other", "prompt": "a"})
        assert (status, refused["error"]["code"]) == (404, "model_not_found")
        assert "this server has demo, tuned, half" in refused["error"]["message"]
        metrics = server.ask("/metrics")[1]
        assert server.ask("/tokenize", {"prompt": "a", "model": "tuned"})[0] == 200
        assert len(server.pool.loaded) == 1
    assert 'mlx_qwen3_replies_total{model="tuned"} 3' in metrics
    assert 'mlx_qwen3_replies_total{model="half"} 2' in metrics
    assert any("model=tuned" in record.getMessage() for record in caplog.records)
    model, tokenizer = load("demo", "fp32", adapters=[f"{adapter}=8"])
    alone = generate(
        model, tokenizer, tokenizer.encode("What is 17"), sampling=SamplingParams(temperature=0), max_tokens=12
    )
    assert replies["tuned"] == tokenizer.decode(alone.tokens, skip_special_tokens=True)


def test_rows_of_the_base_and_its_adapters_count_together(adapter):
    async def run():
        models = Pool({"demo": "demo"}, dtype="fp32", adapters={"tuned": adapter})
        async with models.use("demo") as base, models.use("tuned") as tuned:
            assert tuned.engine is base.engine
            assert (tuned.name, tuned.adapter, base.adapter) == ("tuned", "tuned", None)
            tuned.replies += 2
            base.replies += 1
            assert base.replies == tuned.replies == 3
            assert base.users == 2
        await models.close("over")

    asyncio.run(run())


def test_adapters_that_cannot_be_served(adapter, tmp_path):
    for names, message in {("demo",): "two models would be named 'demo'", ("other", "demo"): "named 'demo'"}.items():
        with pytest.raises(UsageError, match=message):
            Pool({"demo": "demo"}, adapters=dict.fromkeys(names, adapter))
    with pytest.raises(MemoryBudgetError, match="the weights of demo take"):
        Pool({"demo": "demo"}, dtype="fp32", memory="20400KB", adapters={"tuned": adapter})
    with pytest.raises(CheckpointError, match="has shape"):
        Pool({"demo": "demo"}, adapters={"tiny": str(write_peft(tmp_path))})
