"""The keys of config.json: which are read, which must have one value, and which cannot change the forward pass.

A key that transformers reads for Qwen3, but this package does not honour, is refused. A key that neither of them knows
is named in a warning. All other keys are accepted silently.
"""

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError, warn
from .moe import MODEL_TYPE as MOE
from .reading import short
from .settings import mapping, shown

FORMAT = 1  # version of our own checkpoint format, `mlx_qwen3.format` in config.json

READ = frozenset(
    """model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads
    head_dim rms_norm_eps max_position_embeddings original_max_position_embeddings tie_word_embeddings rope_theta
    rope_scaling rope_parameters layer_types eos_token_id quantization quantization_config mlx_qwen3""".split()
)
READ_OF_MOE = frozenset(
    """num_experts num_local_experts num_experts_per_tok moe_intermediate_size norm_topk_prob decoder_sparse_step
    mlp_only_layers""".split()
)
# Settings that change what is computed, with the values that are supported. null or a missing key means the first
# value.
FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),
    "use_sliding_window": (False,),
    "partial_rotary_factor": (1.0,),
    "is_encoder_decoder": (False,),
    "is_causal": (True,),  # false lets every token see all others
    "per_layer_config": ({}, []),  # settings of single layers
    "quantize_activations": (False,),  # of mlx-lm
    "model_file": ("",),  # of mlx-lm: the name of Python code that computes another model
}
# Keys of transformers' configurations, new and old: training, output, the way of computing, special tokens.
TRANSFORMERS = frozenset(
    """_attn_implementation _attn_implementation_autoset _attn_implementation_internal _auto_class _commit_hash
    _experts_implementation _experts_implementation_internal _flash_attn_2_enabled _name_or_path add_cross_attention
    architectures attention_dropout attn_implementation auto_map base_model_pp_plan base_model_tp_plan bos_token_id
    chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id dtype experts_implementation
    finetuning_task gradient_checkpointing id2label initializer_range is_decoder keys_to_ignore_at_inference
    label2id loss_type max_window_layers name_or_path num_labels output_attentions output_hidden_states
    output_router_logits pad_token_id prefix pretraining_tp problem_type return_dict router_aux_loss_coef
    sep_token_id sliding_window task_specific_params tf_legacy_loss tie_encoder_decoder tie_last_hidden_states
    tokenizer_class torch_dtype torchscript transformers_version use_bfloat16 use_cache use_flash_attention_2
    use_return_dict""".split()
)
# Settings of generation, which belong in generation_config.json: transformers drops them from config.json.
GENERATION = frozenset(
    """assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight assistant_lookbehind bad_words_ids
    begin_suppress_tokens cache_config cache_implementation compile_config constraints continuous_batching_config
    disable_compile diversity_penalty do_sample dola_layers early_stopping encoder_no_repeat_ngram_size
    encoder_repetition_penalty epsilon_cutoff eta_cutoff exponential_decay_length_penalty forced_bos_token_id
    forced_eos_token_id force_words_ids frequency_penalty guidance_scale is_assistant length_penalty low_memory
    max_cache_len max_length max_matching_ngram_size max_new_tokens max_time min_length min_new_tokens min_p
    no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule num_beam_groups num_beams
    num_return_sequences output_logits output_scores penalty_alpha prefill_chunk_size presence_penalty
    prompt_lookup_num_tokens remove_invalid_values renormalize_logits repetition_penalty return_dict_in_generate
    return_legacy_cache sequence_bias speculation_type stop_strings suppress_tokens target_lookbehind temperature
    token_healing top_h top_k top_p typical_p use_mtp watermarking_config _from_model_config""".split()
)
# Keys that trl, peft, axolotl, LLaMA-Factory, Unsloth and similar programs write.
TRAINING = frozenset(
    """base_model_name_or_path ddp_find_unused_parameters flash_attention group_size_ratio gradient_checkpointing_kwargs
    is_peft_model max_seq_len max_seq_length model_max_length model_name neftune_noise_alpha peft_config peft_type
    s2_attention sample_packing seq_length summary_activation summary_dropout_prob summary_first_dropout
    summary_proj_to_labels summary_type summary_use_proj tokenizer_model_max_length tokenizer_name
    tokenizer_padding_side train_dtype use_flash_attn use_gradient_checkpointing use_liger_kernel use_reentrant
    use_unsloth""".split()
)
SILENT = TRANSFORMERS | GENERATION | TRAINING
SILENT_PREFIXES = ("unsloth_",)


def check_keys(raw: Mapping[str, Any]) -> None:
    """Raises ConfigError for a setting that cannot be honoured, and warns about an unknown one."""
    if (model_type := raw.get("model_type")) not in ("qwen3", MOE):
        raise ConfigError(
            f"model_type is {shown(model_type)}; this package runs 'qwen3' and {MOE!r} (mixture of experts)"
        )
    for key, supported in FIXED.items():
        if raw.get(key) is not None and raw[key] not in supported:
            raise ConfigError(f"{key} is {shown(raw[key])}; only {supported[0]!r} is supported, as in every release")
    _check_layer_types(raw)
    ours = mapping(raw, "mlx_qwen3")
    if ours and ours.get("format") != FORMAT:
        raise ConfigError(
            f"mlx_qwen3.format is {shown(ours.get('format'))}; this version reads {FORMAT}; convert again"
        )
    known = READ | (READ_OF_MOE if model_type == MOE else set()) | FIXED.keys() | SILENT
    for key in sorted(raw.keys() - known):
        if raw[key] not in (None, False, "", {}, []) and not key.startswith(SILENT_PREFIXES):
            warn(f"{short(key)} in config.json is a setting that neither transformers nor this package knows for Qwen3")


def _check_layer_types(raw: Mapping[str, Any]) -> None:
    kinds, layers = raw.get("layer_types"), raw.get("num_hidden_layers")
    if kinds is not None and (not isinstance(kinds, list) or len(kinds) != layers):
        raise ConfigError(f"layer_types is {shown(kinds)}; expected one for each of num_hidden_layers {shown(layers)}")
    for index, kind in enumerate(kinds or ()):
        if kind not in ("full_attention", "attention"):  # transformers reads the second, an older name, as the first
            raise ConfigError(f"layer_types[{index}] is {shown(kind)}; only 'full_attention' is supported")
