"""generation_config.json: what is read, what is refused, and what cannot change a reply.

The settings are those of transformers' GenerationConfig. One that changes replies and is not honoured is refused; one
that transformers does not know is named in a warning.
"""

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError, PromptError, warn
from ..files.reading import short
from ..files.settings import is_int, shown

FILE = "generation_config.json"
READ = frozenset(
    """do_sample temperature top_k top_p min_p repetition_penalty presence_penalty frequency_penalty
    max_new_tokens max_length eos_token_id""".split()
)
# Settings that change what is generated and are not implemented, with the values that have no effect.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "penalty_alpha": (0.0,),
    "typical_p": (1.0,),
    "top_h": (),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "diversity_penalty": (0.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "guidance_scale": (1.0,),
    "bad_words_ids": ([],),
    "sequence_bias": ([], {}),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "stop_strings": ([],),
    "max_time": (),
    "dola_layers": (),
    "force_words_ids": ([],),
    "constraints": ([],),
    "watermarking_config": (),
    "token_healing": (False,),
    "remove_invalid_values": (False,),  # true replaces NaN; here NaN is an error
}
# Settings that cannot change the tokens of a reply: of beam search, which is refused; of caches, compilation and the
# form of transformers' output; of drafts, which change no token; of encoders; special tokens that are never prepended.
INERT = frozenset(
    """early_stopping length_penalty low_memory renormalize_logits
    use_cache cache_implementation cache_config max_cache_len return_legacy_cache prefill_chunk_size
    compile_config disable_compile continuous_batching_config
    output_attentions output_hidden_states output_scores output_logits return_dict_in_generate
    is_assistant num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold
    prompt_lookup_num_tokens max_matching_ngram_size assistant_early_exit assistant_lookbehind target_lookbehind
    assistant_ensemble_weight speculation_type use_mtp
    decoder_start_token_id bos_token_id pad_token_id
    transformers_version _from_model_config _commit_hash""".split()
)
# What Qwen recommends without thinking; its generation_config.json has the values for thinking alone.
NOT_THINKING = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.0}
SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


def check(raw: Mapping[str, Any]) -> None:
    """Raises ConfigError for a setting that cannot be honoured, and warns about an unknown one."""
    for name, neutral in NEUTRAL.items():
        if raw.get(name) is not None and raw[name] not in neutral:
            raise ConfigError(f"{name} is {shown(raw[name])} in {FILE}; it is not supported, remove it there")
    for name in sorted(raw.keys() - READ - NEUTRAL.keys() - INERT):
        if raw[name] is not None:
            warn(f"{short(name)} in {FILE} is a setting that neither transformers nor this package knows")


def sampling_overrides(raw: Mapping[str, Any], thinking: bool) -> dict[str, Any]:
    """The values that replace settings of the file: greedy if it does not sample, else Qwen's if thinking is off.

    `do_sample` false or absent is greedy, as in transformers.
    """
    sample = raw.get("do_sample")
    if sample is not None and not isinstance(sample, bool):
        raise ConfigError(f"do_sample is {shown(sample)} in {FILE}; expected true or false, correct it there")
    if raw and not sample:
        return {"temperature": 0.0}
    return {} if thinking else NOT_THINKING


def token_limit(raw: Mapping[str, Any], prompt: int, context: int) -> int:
    """New tokens that max_new_tokens, else max_length, and the context leave room for after `prompt` tokens.

    Raises ConfigError for a limit that is not a positive integer, PromptError if max_length leaves no room.
    """
    for name in ("max_new_tokens", "max_length"):
        value = raw.get(name)
        if value is not None and (not is_int(value) or value < 1):
            raise ConfigError(
                f"{name} is {shown(value)} in {FILE}; expected a positive integer, correct or remove it there"
            )
    new, length = raw.get("max_new_tokens"), raw.get("max_length")
    if new is None and length is not None:
        new = length - prompt
        if new < 1:
            raise PromptError(
                f"the prompt has {prompt} tokens and max_length is {length} in {FILE}, which counts them; "
                "set max_tokens, or remove max_length there"
            )
    room = context - prompt
    return max(1, room if new is None else min(new, room))
