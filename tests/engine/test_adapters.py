"""Adapters by request: every row gets the reply that it gets alone on the model with its adapter."""

import pytest
from adapting import write_mlx_lm, write_peft
from checkpoints import TINY, VOCABULARY, write_checkpoint, write_tokenizer
from mlx.utils import tree_flatten
from prefixes import LIMIT, Counted, prompt_of, row
from schedules import QUESTIONS, Alone, Broken, Schedule

from mlx_qwen3 import Engine, ReplyOptions, SamplingParams, generate
from mlx_qwen3.engine.adapters import adapted_models
from mlx_qwen3.engine.memory import Memory
from mlx_qwen3.engine.prefix import PrefixStore, model_key
from mlx_qwen3.engine.prefix_folder import PrefixFolder
from mlx_qwen3.errors import CheckpointError, MemoryBudgetError, UsageError
from mlx_qwen3.model.load import load_model
from mlx_qwen3.text.tokenizer import Tokenizer

GREEDY = SamplingParams(temperature=0)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(model, tokenizer, two adapters by name); untied, since a tied model with random weights repeats one token."""
    folder = tmp_path_factory.mktemp("small")
    changes = {"vocab_size": VOCABULARY, "tie_word_embeddings": False, "eos_token_id": 258}
    base = write_tokenizer(write_checkpoint(folder / "base", **changes))
    peft = write_peft(folder / "peft", model={**TINY, **changes})
    keys = ["self_attn.q_proj", "mlp.up_proj"]
    mlx = write_mlx_lm(folder / "mlx", model={**TINY, **changes}, keys=keys, layers=1, seed=3)
    return load_model(base, "fp32"), Tokenizer(base), {"peft": f"{peft}=0.5", "mlx": str(mlx)}


@pytest.fixture(scope="module")
def models(small):
    model, _, adapters = small
    return adapted_models(model, adapters, LIMIT * 100)


@pytest.fixture(scope="module")
def alone(small, models):
    model, tokenizer, _ = small
    return Alone(model, tokenizer.size, tokenizer.stop_ids, adapters=models)


def test_a_request_gets_the_reply_of_its_adapter(small, models):
    model, tokenizer, adapters = small
    names = [None, "peft", "mlx"] * 2
    with Engine(model, tokenizer, adapters=adapters) as engine:
        asked = [ReplyOptions(sampling=GREEDY, max_tokens=20)] * len(names)
        requests = [engine.prepare("hello", options, name) for options, name in zip(asked, names, strict=True)]
        replies = [[chunk.token for chunk in reply] for reply in map(engine.submit, requests)]
    expected = {
        name: generate(one, tokenizer, "hello", sampling=GREEDY, max_tokens=20).tokens for name, one in models.items()
    }
    assert len({tuple(tokens) for tokens in expected.values()}) == 3, "the adapters change the reply"
    assert replies == [expected[name] for name in names]


@pytest.mark.parametrize("seed", range(20))
def test_rows_of_several_adapters_that_come_and_go_get_what_they_get_alone(small, models, alone, seed):
    model, tokenizer, _ = small
    prompts = [tokenizer.encode(text) for text in QUESTIONS[:3]]
    memory = Memory(model, model.nbytes + 10**7, 8, adapted=models.values()) if seed % 2 else None
    what = (model, tokenizer.size, tokenizer.stop_ids, prompts, seed)
    schedule = Schedule(*what, memory=memory, adapters=models)
    schedule.run()
    for job, one in schedule.rows:
        heard = tuple(schedule.heard.get(one, ()))
        expected = alone(job)
        assert heard == expected[: len(heard)], job
        assert one in schedule.errors or one in schedule.cancelled or heard == expected
        assert isinstance(schedule.errors.get(one, Broken()), Broken)


def computed(models, store, prompt, adapter):
    """How many tokens of a prompt are computed."""
    scheduler = Counted(models[None], VOCABULARY, prefixes=store, adapters=models)
    made = row(prompt)
    made.adapter = adapter
    scheduler.add(made)
    assert not any(isinstance(event, Exception) for _, event in scheduler.run())
    return scheduler.computed


def test_prefixes_are_kept_apart(models):
    store, prompt = PrefixStore(LIMIT), prompt_of(60)
    assert [computed(models, store, prompt, name) for name in (None, "peft", "mlx")] == [60] * 3
    assert [computed(models, store, prompt, name) for name in (None, "peft", "mlx")] == [1] * 3


def test_prefixes_of_all_share_the_limit(models):
    prompt = prompt_of(60)
    first = PrefixStore(LIMIT)
    computed(models, first, prompt, None)
    store = PrefixStore(2 * first.nbytes)
    for name in (None, "peft", None, "mlx"):
        computed(models, store, prompt, name)
    assert store.nbytes <= 2 * first.nbytes
    assert [computed(models, store, prompt, name) for name in (None, "mlx", "peft")] == [1, 1, 60], "the oldest went"


def test_a_folder_keeps_them_apart_too(models, tmp_path):
    def folders():
        return {name: PrefixFolder(tmp_path, model_key(model)) for name, model in models.items()}

    store, prompt = PrefixStore(LIMIT, folders()), prompt_of(60)
    computed(models, store, prompt, "peft")
    store.close()
    later = PrefixStore(LIMIT, folders())
    assert [computed(models, later, prompt, name) for name in (None, "mlx", "peft")] == [60, 60, 1]
    later.close()


def test_running_rows_do_not_share_a_prompt_with_another_adapter(models):
    prompt, names = prompt_of(100), ["peft", None, "peft"]
    scheduler = Counted(models[None], VOCABULARY, max_rows=4, adapters=models)
    for name in names:
        made = row(prompt, 40)
        made.adapter = name
        scheduler.add(made)
    list(scheduler.run())
    assert scheduler.computed == 100 + 100 + 1


def test_the_weights_are_shared(small, models):
    model, *_ = small
    own = {id(array) for _, array in tree_flatten(model.parameters())}
    extra = Memory(model, adapted=models.values()).weights - model.nbytes
    added = {id(a): a.nbytes for one in models.values() for _, a in tree_flatten(one.parameters()) if id(a) not in own}
    assert extra == sum(added.values()) < 0.3 * model.nbytes
    for one in models.values():
        assert own <= {id(array) for _, array in tree_flatten(one.parameters())}


def test_what_does_not_fit_the_memory_is_refused_with_both_numbers(small):
    model, tokenizer, adapters = small
    with pytest.raises(MemoryBudgetError, match=r"the weights and 2 adapters take [\d.]+ MB and the memory budget is "):
        Engine(model, tokenizer, adapters=adapters, memory=model.nbytes + 1000)


def test_adapters_without_names_are_refused(small):
    model, tokenizer, adapters = small
    with pytest.raises(UsageError, match=r"adapters is \[.*; expected adapters by name"):
        Engine(model, tokenizer, adapters=list(adapters.values()))


def test_unknown_names_and_adapters_that_do_not_fit(small, tmp_path):
    model, tokenizer, adapters = small
    named = pytest.raises(UsageError, match="adapter is 'other'; this engine has peft, mlx")
    with Engine(model, tokenizer, adapters=adapters) as engine, named:
        engine.prepare("hello", None, "other")
    with Engine(model, tokenizer) as engine, pytest.raises(UsageError, match="adapter is 'peft'; this engine has none"):
        engine.prepare("hello", None, "peft")
    with pytest.raises(CheckpointError, match=r"has shape|does not belong"):
        Engine(model, tokenizer, adapters={"small": write_peft(tmp_path, model={**TINY, "hidden_size": 40})})


def test_files_of_keys_and_values_tell_them_apart(models):
    assert len({model_key(model) for model in models.values()}) == 3
