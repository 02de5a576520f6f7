"""Replies with drafts against the same replies without, whatever is drafted; and who drafts what, and when."""

from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from arrays import as_numpy
from checkpoints import AFFINE_4, TINY, YARN, write_checkpoint, write_packed

from mlx_qwen3.engine import batch, speculative
from mlx_qwen3.engine.decode import decode, generate_batch
from mlx_qwen3.engine.runner import DecodeStep
from mlx_qwen3.engine.sampler import Sampler
from mlx_qwen3.engine.sampling import SamplingParams
from mlx_qwen3.engine.speculative import (
    COST_CPU,
    COST_GPU,
    COST_GPU_PACKED,
    LONGEST,
    ROW_BY_ROW,
    Drafter,
    DraftModel,
    Lookup,
    Pace,
    make_drafter,
)
from mlx_qwen3.errors import HealthError, UsageError
from mlx_qwen3.model.cache import KVCache
from mlx_qwen3.model.load import load_model

GREEDY = SamplingParams(temperature=0)
ALL_OPTIONS = SamplingParams(1.2, 50, 0.95, 0.01, 1.3, 11, presence_penalty=0.3, frequency_penalty=0.2)
SAMPLINGS = {
    "greedy": GREEDY,
    "greedy with penalties": SamplingParams(0, repetition_penalty=1.3, frequency_penalty=0.5),
    "whole vocabulary": SamplingParams(1.0, 0, 1.0, seed=3),
    "all options": ALL_OPTIONS,
}
FREE = (1.0,) * (LONGEST + 1)
PROMPT = np.random.default_rng(4).integers(0, TINY["vocab_size"], 30).tolist()


@pytest.fixture(scope="module", params=["default", "yarn", "quantized"])
def model(request, tmp_path_factory):
    """One whose replies wander: untied, see test_generation."""
    folder, wandering = tmp_path_factory.mktemp("model"), {"num_hidden_layers": 3, "tie_word_embeddings": False}
    if request.param == "quantized":
        return load_model(write_packed(folder, AFFINE_4, **wandering), "fp32")
    return load_model(write_checkpoint(folder, rope_scaling=YARN if request.param == "yarn" else None, **wandering))


@pytest.fixture(scope="module")
def wanderer(tmp_path_factory):
    return load_model(write_checkpoint(tmp_path_factory.mktemp("wanderer"), tie_word_embeddings=False))


def reply(model, sampling, prompt=PROMPT, drafter=None, **limits):
    return list(decode(model, prompt, sampling, drafter=drafter, **{"max_tokens": 60, **limits}))


class Scripted(Drafter):
    """Drafts the true reply, each token wrong with some probability, and watches the cache."""

    def __init__(self, model, truth, wrong=0.2, seed=0, prompt=PROMPT):
        super().__init__(prompt, Pace(FREE))
        self.truth, self.wrong, self.rng = truth, wrong, np.random.default_rng(seed)
        self.cache, self.all_right, self.unreadable = model.make_cache(), 0, False
        model.make_cache = lambda *_: self.cache

    def propose(self, room, sampler):
        here = len(self._text) - self._prompt
        drafts = self.truth[here : here + min(room, int(self.rng.integers(0, LONGEST + 1)))]
        return [(token + 1) % TINY["vocab_size"] if self.rng.random() < self.wrong else token for token in drafts]

    def checked(self, drafted, accepted):
        super().checked(drafted, accepted)
        self.all_right += accepted == drafted
        assert self.cache.end == len(self._text) - 1  # the last token was never fed


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS.keys())
def test_drafts_change_no_token(model, sampling, monkeypatch):
    truth = reply(model, sampling)
    assert len(set(truth)) > 20, "a reply that repeats itself proves nothing"
    for wrong in (0.0, 0.2, 1.0):
        with monkeypatch.context() as patch:
            patch.setattr(model, "make_cache", model.make_cache)  # to be put back
            drafter = Scripted(model, truth, wrong)
            assert reply(model, sampling, drafter=drafter) == truth
        assert drafter.drafted > 20
        assert (drafter.accepted == drafter.drafted) is (wrong == 0)
        assert bool(drafter.all_right) is (wrong < 1)


def one_too_many(patch):
    check = Sampler.check
    patch.setattr(Sampler, "check", lambda s, logits, at, fed: (check(s, logits, at, fed) + fed[-1:])[: len(fed)])


def no_trim(patch):
    patch.setattr(KVCache, "trim", lambda cache, length: None)


def trim_one_too_many(patch):
    trim = KVCache.trim
    patch.setattr(KVCache, "trim", lambda cache, length: trim(cache, length + (length > 0)))


def shifted_keys(patch):
    check = Sampler.check
    patch.setattr(Sampler, "check", lambda s, logits, at, fed: check(s, logits, at + 1, fed))


def one_key(patch):
    check = Sampler._choose
    patch.setattr(
        Sampler, "_choose", lambda s, logits, penalties, places: check(s, logits, penalties, places[:1] * len(places))
    )


def unseen_drafts(patch):
    patch.setattr(Sampler, "_along", lambda s, fed: s._penalties)


def forgotten_drafts(patch):
    note = Sampler._note
    patch.setattr(Sampler, "_note", lambda s, tokens: note(s, tokens[:, -1:]))


MISTAKES = [one_too_many, no_trim, trim_one_too_many, shifted_keys, one_key, unseen_drafts, forgotten_drafts]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_mistakes_are_seen(wanderer, mistake, monkeypatch):
    truth = reply(wanderer, ALL_OPTIONS)
    monkeypatch.setattr(wanderer, "make_cache", wanderer.make_cache)
    monkeypatch.setattr(Scripted, "checked", Drafter.checked)
    drafter = Scripted(wanderer, truth)
    mistake(monkeypatch)
    assert reply(wanderer, ALL_OPTIONS, drafter=drafter) != truth


@pytest.mark.parametrize("limit", range(1, 12))
def test_a_limit_cuts_drafts(wanderer, limit, monkeypatch):
    truth = reply(wanderer, GREEDY)
    monkeypatch.setattr(wanderer, "make_cache", wanderer.make_cache)
    drafter = Scripted(wanderer, truth, wrong=0)
    assert reply(wanderer, GREEDY, drafter=drafter, max_tokens=limit) == truth[:limit]
    assert drafter.cache.end == len(PROMPT) + limit - 1  # the last token is never fed


def test_the_end_of_the_context_cuts_drafts(tmp_path, monkeypatch):
    """Of a model that repeats itself, so that lookup would go on for ever."""
    model = load_model(write_checkpoint(tmp_path, max_position_embeddings=50))
    farthest, commit = [], KVCache.commit
    monkeypatch.setattr(KVCache, "commit", lambda c, buffers, n: commit(c, buffers, n) or farthest.append(c.end))
    drafter = Lookup(PROMPT, Pace(FREE))
    assert len(reply(model, GREEDY, drafter=drafter, max_tokens=None)) == 50 - len(PROMPT)
    assert drafter.accepted > 5
    assert max(farthest) == 49


@pytest.mark.parametrize("at", range(12))
def test_a_stop_id_among_right_drafts_ends_the_reply(wanderer, at, monkeypatch):
    truth = reply(wanderer, GREEDY)
    end = truth.index(truth[at])
    monkeypatch.setattr(wanderer, "make_cache", wanderer.make_cache)
    drafter = Scripted(wanderer, truth, wrong=0)
    assert reply(wanderer, GREEDY, drafter=drafter, stop_ids={truth[at]}) == truth[: end + 1]


class Chain:
    """A model whose next token depends on the last one only, with known probabilities."""

    def __init__(self, vocabulary: int):
        self.config = SimpleNamespace(vocab_size=vocabulary, context_length=100)
        self.table = mx.array(np.random.default_rng(0).normal(0, 1, (vocabulary, vocabulary)).astype(np.float32))

    def make_cache(self, *_):
        return KVCache()

    def hidden(self, ids, cache):
        cache.end += ids.shape[1]
        return self.table[ids]

    def ends(self, ids, cache, keep):
        return self.hidden(ids, cache)[:, ids.shape[1] - keep :]

    def logits(self, hidden):
        return hidden

    def __call__(self, ids, cache):
        return self.hidden(ids, cache)


class Guesses(Drafter):
    def propose(self, room, sampler):
        return [len(self._text) % 4, 2][:room]


def test_the_distribution_is_the_models(monkeypatch):
    monkeypatch.setattr(batch, "decode_step", lambda model: lambda ids, cache: model(ids[:, None], cache)[:, 0])
    model, draws = Chain(4), 4000
    counts = np.zeros((4, 4, 4))
    accepted = drafted = 0
    for seed in range(draws):
        drafter = Guesses([1], Pace(FREE))
        counts[tuple(reply(model, SamplingParams(1.0, 0, 1.0, seed=seed), [1], drafter, max_tokens=3))] += 1
        accepted, drafted = accepted + drafter.accepted, drafted + drafter.drafted
    step = as_numpy(mx.softmax(model.table, axis=-1))
    expected = draws * step[1][:, None, None] * step[:, :, None] * step[None]
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 103.4  # 63 degrees of freedom: exceeded once in 1,000; the seeds are fixed
    assert 0.1 * drafted < accepted < 0.9 * drafted


# Lookup


def proposed(prompt, room=LONGEST, pace=None, vocabulary=1000):
    return Lookup(prompt, pace or Pace(FREE)).propose(room, SimpleNamespace(vocabulary=vocabulary))


@pytest.mark.parametrize(
    ("prompt", "room", "drafts"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 1, 2], 3, [3, 4, 5]),
        ([1, 2, 3, 4, 5, 6, 7, 1, 2], 0, []),
        ([1, 2, 3, 9, 1, 2, 4, 8, 1, 2], 2, [4, 8]),  # the latest
        ([7, 1, 2, 3, 9, 8, 1, 2, 4, 7, 1, 2], 1, [3]),  # but the longest first
        ([5, 1, 2, 1, 2], 7, [1, 2, 1, 2, 1, 2, 1]),  # wraps around
        ([3, 3, 3], 4, [3, 3, 3, 3]),
        ([1, 2, 3, 4, 5], 7, []),
        ([1, 2, 3, 1], 7, []),  # one token is not enough
        ([1], 7, []),
        ([1, 2, 3, 1000, 4, 1, 2], 7, [3]),  # a padding row is never chosen
        ([1, 2, 1000, 4, 1, 2], 7, []),
    ],
    ids=str,
)
def test_lookup_finds_what_followed(prompt, room, drafts):
    assert proposed(prompt, room) == drafts
    assert Lookup(prompt, Pace(FREE)).expects() is bool(drafts or room == 0 or 1000 in prompt)


def test_lookup_keeps_up_with_the_reply():
    rng = np.random.default_rng(0)
    lookup, text = Lookup([0], Pace(FREE)), [0]
    for _ in range(500):
        token = int(rng.integers(0, 5))
        lookup.add(token)
        text.append(token)
        ends = [end for n in (4, 3, 2) for end in range(len(text) - 1, n - 1, -1) if text[end - n : end] == text[-n:]]
        first = lookup.propose(1, SimpleNamespace(vocabulary=1000))
        assert first == [text[end] for end in ends[:1]]


def test_lookup_in_a_reply_that_repeats_itself(tmp_path):
    model = load_model(write_checkpoint(tmp_path))  # tied: says one token again and again
    for sampling in (GREEDY, SamplingParams(0.5, 20, 0.9, seed=5)):
        drafter = Lookup(PROMPT, Pace(FREE))
        assert reply(model, sampling, drafter=drafter) == reply(model, sampling)
        assert drafter.accepted > 30


def test_without_a_match_every_step_is_built_ahead(wanderer, monkeypatch):
    steps, call = [], DecodeStep.__call__
    monkeypatch.setattr(DecodeStep, "__call__", lambda s, ids, c: steps.append(ids.shape) or call(s, ids, c))
    monkeypatch.setattr(type(wanderer), "__call__", None)  # that of drafts
    drafter = Lookup([1, 2, 3], Pace(FREE))
    assert len(set(reply(wanderer, GREEDY, [1, 2, 3], drafter, max_tokens=10))) == 10
    assert steps == [(1,)] * 9


# Pace


def drive(pace, tokens, right):
    """Lengths of the drafts while `tokens` tokens are made, each draft right with probability `right`."""
    rng, lengths = np.random.default_rng(0), []
    while tokens > 0:
        accepted = 0
        if k := pace.length():
            accepted = next((i for i in range(k) if rng.random() >= right), k)
            pace.record(k, accepted)
        lengths.append(k)
        for _ in range(accepted + 1):
            pace.tick()
        tokens -= accepted + 1
    return lengths


@pytest.mark.parametrize("costs", [COST_CPU, COST_GPU, COST_GPU_PACKED], ids=["cpu", "gpu", "gpu packed"])
def test_right_drafts_make_longer_ones_and_wrong_ones_a_pause(costs):
    assert drive(Pace(costs), 200, right=1.0)[-1] == LONGEST
    wrong = drive(Pace(costs), 2000, right=0.0)
    assert wrong[0] > 0
    assert sum(costs[k] - 1 for k in wrong) < 0.02 * 2000  # what all those tries cost, in passes
    assert any(wrong[-512:]), "it tries again"


def test_the_pauses_grow_and_a_success_ends_that():
    pace = Pace(COST_GPU)

    def pause():
        for tokens in range(1000):
            if pace.length():
                return tokens
            pace.tick()

    lengths = []
    for _ in range(6):
        pace.record(1, 0)
        lengths.append(pause())
    assert lengths == [16, 32, 64, 128, 256, 256]
    pace.record(LONGEST, LONGEST)
    while pace.length():
        pace.record(LONGEST, 0)
    assert pause() == 16


def test_where_every_row_costs_a_pass_nothing_is_drafted():
    assert drive(Pace(ROW_BY_ROW), 100, right=1.0) == [0] * 100


def test_a_costly_draft_model_drafts_less():
    cheap, dear = (drive(Pace(COST_GPU_PACKED, cost), 400, right=0.8) for cost in (0.05, 0.4))
    assert np.mean(cheap) > np.mean(dear)
    assert not any(drive(Pace(COST_GPU_PACKED, 1.0), 400, right=1.0))


# A draft model


class Fresh(DraftModel):
    """Compares each of its drafts with those of one that starts anew."""

    def propose(self, room, sampler):
        drafts = super().propose(room, sampler)
        anew = DraftModel(self._model, self._text[: self._prompt], self._pace)
        anew._text = self._text
        assert DraftModel.propose(anew, room, sampler) == drafts
        return drafts


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS.keys())
def test_a_model_that_drafts_for_itself_is_always_right(wanderer, sampling):
    drafter = Fresh(wanderer, PROMPT, Pace(FREE))
    assert reply(wanderer, sampling, drafter=drafter) == reply(wanderer, sampling)
    assert drafter.accepted == drafter.drafted > 40


@pytest.mark.parametrize("costs", [FREE, COST_CPU], ids=["always", "with pauses"])
@pytest.mark.parametrize("sampling", [GREEDY, ALL_OPTIONS], ids=["greedy", "all options"])
def test_another_model_drafts_and_changes_no_token(wanderer, costs, sampling):
    other = load_model_like(wanderer)
    drafter = Fresh(other, PROMPT, Pace(costs))
    assert reply(wanderer, sampling, drafter=drafter, max_tokens=150) == reply(wanderer, sampling, max_tokens=150)
    assert 0 < drafter.accepted < drafter.drafted


def load_model_like(model):
    """The same, its weights disturbed until it is right only now and then."""
    other = deepcopy(model)
    other.lm_head.weight = model.lm_head.weight + 0.5 * mx.random.normal(
        model.lm_head.weight.shape, key=mx.random.key(1)
    )
    return other


def test_a_draft_model_of_a_shorter_context_stops_at_its_end(wanderer):
    short = load_model_like(wanderer)
    short.config = replace(wanderer.config, max_position_embeddings=40)
    farthest, drafter = 0, Fresh(short, PROMPT, Pace(FREE))
    for _ in decode(wanderer, PROMPT, GREEDY, max_tokens=30, drafter=drafter):
        farthest = max(farthest, drafter._cache.end)
    assert 35 < farthest <= 40


# Who drafts


def test_who_drafts(wanderer, tmp_path, monkeypatch):
    packed = load_model(write_packed(tmp_path, AFFINE_4, tie_word_embeddings=False), "fp32")
    monkeypatch.setattr(speculative.blas, "lacking", lambda: False)
    assert isinstance(make_drafter(wanderer, [PROMPT]), Lookup)
    assert make_drafter(wanderer, [PROMPT], lookup=False) is None
    assert isinstance(make_drafter(wanderer, [PROMPT], draft=wanderer, lookup=True), DraftModel)
    assert make_drafter(wanderer, [PROMPT, PROMPT]) is None
    if mx.default_device().type == mx.cpu:
        assert make_drafter(packed, [PROMPT]) is None
        assert isinstance(make_drafter(packed, [PROMPT], lookup=True), Lookup)
        monkeypatch.setattr(speculative.blas, "lacking", lambda: True)
        assert make_drafter(wanderer, [PROMPT]) is None


@pytest.mark.parametrize(
    ("architecture", "table"),
    [
        ("applegpu_g13d", speculative.COST_GPU_PACKED_OLD),
        ("applegpu_g16s", COST_GPU_PACKED),
        ("sm_90", COST_GPU_PACKED),
    ],
)
def test_the_cost_of_a_pass_on_a_gpu(wanderer, tmp_path, monkeypatch, architecture, table):
    packed = load_model(write_packed(tmp_path, AFFINE_4), "fp32")
    monkeypatch.setattr(mx, "default_device", lambda: SimpleNamespace(type=mx.gpu))
    monkeypatch.setattr(mx, "device_info", lambda: {"architecture": architecture})
    assert speculative.pass_costs(packed) == table
    assert speculative.pass_costs(wanderer) == COST_GPU


def test_a_pass_of_experts_costs_more_as_its_tokens_choose_others(tiny_moe, monkeypatch):
    model, table = load_model(tiny_moe), (1.0, 1.1, 1.2)
    monkeypatch.setattr(speculative, "_pass_costs", lambda model: table)
    share, read = model.expert_share, (1, 1 + 4 / 7, 1 + 4 / 7 + (4 / 7) ** 2)  # 3 of 7 for each token
    right = [cost + share * (own - cost) for cost, own in zip(table, read, strict=True)]
    assert speculative.pass_costs(model) == pytest.approx(right)
    monkeypatch.setattr(speculative, "_pass_costs", lambda model: speculative.ROW_BY_ROW)
    assert speculative.pass_costs(model) == speculative.ROW_BY_ROW


@pytest.mark.parametrize(("options", "message"), [({"lookup": True}, "lookup is on for 2"), ({"draft": 1}, "for 2")])
def test_drafts_for_a_batch_are_refused_by_name(wanderer, options, message):
    options = {name: wanderer if name == "draft" else value for name, value in options.items()}
    with pytest.raises(UsageError, match=message):
        generate_batch(wanderer, [PROMPT, PROMPT], max_tokens=3, **options)


PADDED = (TINY["vocab_size"] + 34, TINY["vocab_size"] - 20)  # rows of a draft model's embedding


@pytest.mark.parametrize("rows", PADDED)
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS.keys())
def test_a_draft_model_with_another_number_of_padding_rows(wanderer, sampling, rows, tmp_path):
    """The tokenizer has 120 ids, and the prompt one of the padding rows, which only the longer embedding has."""
    prompt = [token % 120 for token in PROMPT] + [TINY["vocab_size"] - 2, 5]
    drafter = make_drafter(wanderer, [prompt], draft=like(wanderer, rows), vocabulary=120)
    drafter._pace = Pace(FREE)
    replies = [
        list(decode(wanderer, prompt, sampling, 120, max_tokens=60, drafter=drafts)) for drafts in (None, drafter)
    ]
    assert replies[0] == replies[1]
    assert max(replies[0]) < 120
    assert (drafter.accepted > 10) is (rows > TINY["vocab_size"]), "what it cannot read it does not continue"


def test_a_shorter_draft_model_drafts_what_it_can_read(wanderer):
    prompt = [token % 120 for token in PROMPT]
    drafter = make_drafter(wanderer, [prompt], draft=like(wanderer, PADDED[1]))
    drafter._pace = Pace(FREE)
    truth = reply(wanderer, GREEDY, prompt, max_tokens=200)
    assert reply(wanderer, GREEDY, prompt, drafter, max_tokens=200) == truth
    first = next((i for i, token in enumerate(truth) if token >= PADDED[1]), 200)
    assert 0 < drafter.accepted < 200 > first


def like(model, rows):
    """A draft model that says the same, its embedding and head cut or padded to another number of rows."""
    other = deepcopy(model)
    other.config = replace(model.config, vocab_size=rows)
    for matrix in (other.embed_tokens, other.lm_head):
        extra = mx.full((max(0, rows - len(matrix.weight)), matrix.weight.shape[1]), 3.0)
        matrix.weight = mx.concatenate([matrix.weight[:rows], extra])
    return other


def test_a_draft_model_that_lacks_ids_of_the_tokenizer_is_refused(wanderer):
    with pytest.raises(UsageError, match="the draft model has a vocabulary of 131, the tokenizer 140 ids"):
        make_drafter(wanderer, [PROMPT], draft=like(wanderer, PADDED[1]), vocabulary=140)


# Logits that are NaN


@pytest.fixture
def broken(wanderer):
    """A weight of the head is NaN: one logit is, of every token."""
    other = deepcopy(wanderer)
    weight = np.array(other.lm_head.weight)
    weight[77, 3] = np.nan
    other.lm_head.weight = mx.array(weight)
    return other


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS.keys())
def test_one_nan_weight_ends_the_reply_with_an_error(broken, sampling):
    with pytest.raises(HealthError, match=r"the model has NaN .* token 1 of the reply, after 30 prompt tokens"):
        reply(broken, sampling)
    with pytest.raises(HealthError, match=r"prompt 1: .* token 1 of the reply, after 30 prompt tokens"):
        generate_batch(broken, [PROMPT, PROMPT[:9]], max_tokens=5, sampling=sampling)


def until_error(steps):
    """(The tokens of a reply, the message of the error that ended it)."""
    said = []
    try:
        for token in steps:
            said.append(token)
    except HealthError as error:
        return said, str(error)
    raise AssertionError("no error")


def cannot_read(model, token):
    """The same model with an embedding that is NaN for one token."""
    other = deepcopy(model)
    weight = np.array(other.embed_tokens.weight)
    weight[token] = np.nan
    other.embed_tokens.weight = mx.array(weight)
    return other


def test_nan_in_the_middle_of_a_reply_names_the_token(wanderer):
    truth = reply(wanderer, GREEDY)
    unread = next(token for token in truth[5:] if token not in PROMPT)
    count = truth.index(unread) + 1
    for drafter in (None, Lookup(PROMPT, Pace(FREE))):
        steps = decode(cannot_read(wanderer, unread), PROMPT, GREEDY, max_tokens=60, drafter=drafter)
        said, message = until_error(steps)
        assert f"for token {count + 1} of the reply" in message
        assert said == truth[:count]


def test_nan_in_a_pass_that_checks_drafts(wanderer, monkeypatch):
    truth = reply(wanderer, GREEDY)
    unread = next(token for token in truth[5:] if token not in PROMPT)
    model = cannot_read(wanderer, unread)
    monkeypatch.setattr(model, "make_cache", model.make_cache)
    drafter = Scripted(model, truth, wrong=0)
    drafter.unreadable = True
    said, message = until_error(decode(model, PROMPT, GREEDY, max_tokens=60, drafter=drafter))
    count = truth.index(unread) + 1
    assert f"for token {count + 1} of the reply" in message
    assert said == truth[:count]
    assert drafter.drafted > drafter.accepted > 0


def test_a_guess_that_the_model_cannot_read_changes_no_token(wanderer):
    """It is wrong, so that the reply never needs it. Its NaN reaches all positions of the pass that checks it."""
    truth = reply(wanderer, GREEDY)
    unread = next(token for token in range(TINY["vocab_size"]) if token not in [*PROMPT, *truth])

    class Unreadable(Drafter):
        def propose(self, room, sampler):
            return [truth[len(self._text) - self._prompt], unread, 1][:room]

    drafter = Unreadable(PROMPT, Pace(FREE))
    assert reply(cannot_read(wanderer, unread), GREEDY, drafter=drafter) == truth
    assert drafter.drafted > 50


def test_nan_of_a_draft_model_is_its_own_error(wanderer, broken):
    said, message = until_error(decode(wanderer, PROMPT, GREEDY, drafter=DraftModel(broken, PROMPT, Pace(FREE))))
    assert message.startswith("the draft model has NaN")
    assert len(said) == 1


def test_a_row_that_has_ended_does_not_count(wanderer):
    """The first token of one reply ends it, and is what the model cannot read."""
    [other] = generate_batch(wanderer, [PROMPT[:11]], max_tokens=8)
    rng = np.random.default_rng(0)
    while True:
        prompt = rng.integers(0, TINY["vocab_size"], 20).tolist()
        end = generate_batch(wanderer, [prompt], max_tokens=1)[0][0]
        if end not in [*prompt, *PROMPT, *other]:
            break
    replies = generate_batch(cannot_read(wanderer, end), [prompt, PROMPT[:11]], max_tokens=8, stop_ids={end})
    assert replies == [[], other]


def test_lookup_is_on_off_or_left_to_the_pace(wanderer):
    with pytest.raises(UsageError, match="lookup is 'yes'; expected True, False or None"):
        make_drafter(wanderer, [[1, 2]], lookup="yes")
