"""The tensors of TensorRT-LLM's in-flight batching models, one per line.

A line is ``name type dims flags``. Flags: ``scalar`` (dims [1], reshaped to no dimension), ``ragged`` (sequences of
different lengths share a batch), ``optional``.

Source:
    TensorRT-LLM, triton_backend/all_models/inflight_batcher_llm/*/config.pbtxt, 1.1 to 1.2.
"""

from __future__ import annotations

from typing import NamedTuple


class Tensor(NamedTuple):
    """One input or output of a model, as config.pbtxt states it."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    scalar: bool = False
    ragged: bool = False
    optional: bool = False


def _table(text: str) -> tuple[Tensor, ...]:
    return tuple(_tensor(line) for line in text.strip().splitlines())


def _tensor(line: str) -> Tensor:
    name, data_type, dims, *flags = line.split()
    sizes = tuple(int(size) for size in dims.strip("[]").split(","))
    return Tensor(name, f"TYPE_{data_type}", sizes, "scalar" in flags, "ragged" in flags, "optional" in flags)


PREPROCESSING_INPUTS = _table("""
QUERY STRING [1]
DECODER_QUERY STRING [1] optional
IMAGE_BYTES UINT8 [-1,-1,-1,-1] optional
IMAGE_URL STRING [-1] optional
IMAGE_SIZES INT64 [-1,2] optional
VIDEO_BYTES UINT8 [-1,-1,-1,-1] optional
REQUEST_OUTPUT_LEN INT32 [1]
BAD_WORDS_DICT STRING [-1] optional
STOP_WORDS_DICT STRING [-1] optional
EMBEDDING_BIAS_WORDS STRING [-1] optional
EMBEDDING_BIAS_WEIGHTS FP32 [-1] optional
END_ID INT32 [1] optional
PAD_ID INT32 [1] optional
PROMPT_TABLE_EXTRA_ID UINT64 [1] optional
""")

PREPROCESSING_OUTPUTS = _table("""
INPUT_ID INT32 [-1]
DECODER_INPUT_ID INT32 [-1]
REQUEST_INPUT_LEN INT32 [1]
REQUEST_DECODER_INPUT_LEN INT32 [1]
BAD_WORDS_IDS INT32 [2,-1]
STOP_WORDS_IDS INT32 [2,-1]
EMBEDDING_BIAS FP32 [-1]
REQUEST_OUTPUT_LEN INT32 [-1]
OUT_END_ID INT32 [1]
OUT_PAD_ID INT32 [1]
OUT_PROMPT_TABLE_EXTRA_IDS UINT64 [-1]
PIXEL_VALUES FP16 [-1,-1,-1,-1]
ASPECT_RATIO_IDS INT64 [-1]
ASPECT_RATIO_MASK INT64 [-1,-1]
CROSS_ATTENTION_MASK INT64 [-1,-1,-1]
IMAGE_SIZES INT64 [-1,2]
IS_VIDEO_INPUT BOOL [1]
ATTENTION_MASK INT64 [-1]
IMAGE_GRID_THW INT64 [3]
VISION_INPUT_ID INT32 [-1]
""")

POSTPROCESSING_INPUTS = _table("""
TOKENS_BATCH INT32 [-1,-1]
SEQUENCE_LENGTH INT32 [-1]
""")

POSTPROCESSING_OUTPUTS = _table("OUTPUT STRING [-1]")

ENGINE_INPUTS = _table("""
input_ids INT32 [-1] ragged optional
encoder_input_features FP16 [-1,-1] ragged optional
encoder_output_lengths INT32 [1] scalar optional
input_lengths INT32 [1] scalar
request_output_len INT32 [1] scalar
num_return_sequences INT32 [1] scalar optional
draft_input_ids INT32 [-1] ragged optional
decoder_input_ids INT32 [-1] ragged optional
decoder_input_lengths INT32 [1] scalar optional
draft_logits FP32 [-1,-1] ragged optional
draft_acceptance_threshold FP32 [1] scalar optional
end_id INT32 [1] scalar optional
pad_id INT32 [1] scalar optional
stop_words_list INT32 [2,-1] ragged optional
bad_words_list INT32 [2,-1] ragged optional
embedding_bias FP32 [-1] ragged optional
beam_width INT32 [1] scalar optional
temperature FP32 [1] scalar optional
runtime_top_k INT32 [1] scalar optional
runtime_top_p FP32 [1] scalar optional
runtime_top_p_min FP32 [1] scalar optional
runtime_top_p_decay FP32 [1] scalar optional
runtime_top_p_reset_ids INT32 [1] scalar optional
len_penalty FP32 [1] scalar optional
early_stopping BOOL [1] scalar optional
repetition_penalty FP32 [1] scalar optional
min_tokens INT32 [1] scalar optional
beam_search_diversity_rate FP32 [1] scalar optional
presence_penalty FP32 [1] scalar optional
frequency_penalty FP32 [1] scalar optional
seed UINT64 [1] scalar optional
return_log_probs BOOL [1] scalar optional
return_context_logits BOOL [1] scalar optional
return_generation_logits BOOL [1] scalar optional
return_perf_metrics BOOL [1] scalar optional
return_num_input_tokens BOOL [1] scalar optional
return_num_output_tokens BOOL [1] scalar optional
exclude_input_in_output BOOL [1] scalar optional
stop BOOL [1] scalar optional
streaming BOOL [1] scalar optional
prompt_embedding_table FP16 [-1,-1] ragged optional
prompt_table_extra_ids UINT64 [-1] ragged optional
prompt_vocab_size INT32 [1] scalar optional
cross_attention_mask BOOL [-1,-1] ragged optional
mrope_rotary_cos_sin FP32 [-1] optional
mrope_position_deltas INT64 [1] optional
lora_task_id UINT64 [1] scalar optional
lora_weights FP16 [-1,-1] ragged optional
lora_config INT32 [-1,3] ragged optional
context_phase_params UINT8 [-1] ragged optional
skip_cross_attn_blocks BOOL [1] ragged optional
retention_token_range_starts INT32 [-1] ragged optional
retention_token_range_ends INT32 [-1] ragged optional
retention_token_range_priorities INT32 [-1] ragged optional
retention_token_range_durations_ms INT32 [-1] ragged optional
retention_decode_priority INT32 [1] ragged optional
retention_decode_duration_ms INT32 [1] ragged optional
guided_decoding_guide_type STRING [1] ragged optional
guided_decoding_guide STRING [1] ragged optional
lookahead_window_size INT32 [1] ragged optional
lookahead_ngram_size INT32 [1] ragged optional
lookahead_verification_set_size INT32 [1] ragged optional
""")

_PERFORMANCE = """
arrival_time_ns INT64 [1]
first_scheduled_time_ns INT64 [1]
first_token_time_ns INT64 [1]
last_token_time_ns INT64 [1]
acceptance_rate FP32 [1]
total_accepted_draft_tokens INT32 [1]
total_draft_tokens INT32 [1]
"""
_REPLY = """
cum_log_probs FP32 [-1]
output_log_probs FP32 [-1,-1]
context_logits FP32 [-1,-1]
generation_logits FP32 [-1,-1,-1]
batch_index INT32 [1]
sequence_index INT32 [1]
{between}
kv_cache_alloc_new_blocks INT32 [1]
kv_cache_reused_blocks INT32 [1]
kv_cache_alloc_total_blocks INT32 [1]
{performance}num_input_tokens INT32 [1]
num_output_tokens INT32 [1]
""".replace("{performance}", _PERFORMANCE[1:])
REPLY_OUTPUTS = _table(_REPLY.replace("{between}\n", ""))  # passed on by name by the ensemble and the BLS model
ENGINE_OUTPUTS = _table(
    "output_ids INT32 [-1,-1]\nsequence_length INT32 [-1]"
    + _REPLY.replace("{between}", "context_phase_params UINT8 [-1]")
)

_TEXT_SAMPLING = """
exclude_input_in_output BOOL [1] optional
end_id INT32 [1] optional
pad_id INT32 [1] optional
top_k INT32 [1] optional
min_tokens INT32 [1] optional
beam_width INT32 [1] optional
top_p FP32 [1] optional
temperature FP32 [1] optional
length_penalty FP32 [1] optional
repetition_penalty FP32 [1] optional
presence_penalty FP32 [1] optional
frequency_penalty FP32 [1] optional
seed UINT64 [1] optional
"""
_TEXT_REST = """
stream BOOL [1] optional
prompt_embedding_table FP16 [-1,-1] optional
prompt_vocab_size INT32 [1] optional
prompt_table_extra_id UINT64 [1] optional
embedding_bias_words STRING [-1] optional
embedding_bias_weights FP32 [-1] optional
lora_task_id UINT64 [1] optional
lora_weights FP16 [-1,-1] ragged optional
lora_config INT32 [-1,3] ragged optional
"""
_RETURNS = ("log_probs", "context_logits", "generation_logits", "perf_metrics", "num_input_tokens", "num_output_tokens")

ENSEMBLE_INPUTS = _table(
    """
text_input STRING [1]
decoder_text_input STRING [1] optional
max_tokens INT32 [1]
num_return_sequences INT32 [1] optional
bad_words STRING [-1] optional
stop_words STRING [-1] optional"""
    + _TEXT_SAMPLING.rstrip()
    + "".join(f"\nreturn_{what} BOOL [1] optional" for what in _RETURNS)
    + _TEXT_REST
    + "guided_decoding_guide_type STRING [1] ragged optional\nguided_decoding_guide STRING [1] ragged optional"
)

BLS_INPUTS = _table(
    """
text_input STRING [1]
decoder_text_input STRING [1] optional
image_input FP16 [-1,3,-1,-1] optional
image_bytes_input UINT8 [-1,-1,-1,-1] optional
video_bytes_input UINT8 [-1,-1,-1,-1] optional
image_url_input STRING [1] optional
image_sizes_input INT64 [-1,2] optional
max_tokens INT32 [1]
bad_words STRING [-1] optional
stop_words STRING [-1] optional"""
    + _TEXT_SAMPLING.rstrip()
    + "".join(f"\nreturn_{what} BOOL [1] scalar optional" for what in _RETURNS)
    + "\nnum_return_sequences INT32 [1] scalar optional"
    + _TEXT_REST.replace("lora_task_id UINT64 [1]", "lora_task_id UINT64 [1] scalar")
    + """num_draft_tokens INT32 [1] optional
use_draft_logits BOOL [1] scalar optional
guided_decoding_guide_type STRING [1] optional
guided_decoding_guide STRING [1] optional"""
)

TEXT_OUTPUTS = (*_table("text_output STRING [-1]"), *REPLY_OUTPUTS)

# The LLM API's only model; it does not batch, so dims are complete shapes.
LLMAPI_INPUTS = _table("""
text_input STRING [-1]
streaming BOOL [1] optional
sampling_param_best_of INT32 [1] optional
sampling_param_temperature FP32 [1] optional
sampling_param_top_k INT32 [1] optional
sampling_param_top_p FP32 [1] optional
sampling_param_frequency_penalty FP32 [1] optional
sampling_param_presence_penalty FP32 [1] optional
sampling_param_max_tokens INT32 [1] optional
sampling_param_stop STRING [-1] optional
sampling_param_seed UINT64 [1] optional
sampling_param_exclude_input_from_output BOOL [1] optional
sampling_param_return_perf_metrics BOOL [1] optional
return_finish_reason BOOL [1] optional
return_stop_reason BOOL [1] optional
return_cumulative_logprob BOOL [1] optional
stop BOOL [1] optional
""")
# Since TensorRT-LLM 1.3 (PR 14079): the first three are required together, the last defaults to "hf".
LLMAPI_LORA_INPUTS = _table("""
lora_id UINT64 [1] optional
lora_name STRING [1] optional
lora_path STRING [1] optional
lora_ckpt_source STRING [1] optional
""")
LLMAPI_OUTPUTS = _table(
    """
text_output STRING [-1]
finish_reason STRING [-1]
stop_reason STRING [-1]
cumulative_logprob FP32 [-1]
kv_cache_reused_block INT32 [-1]
kv_cache_missed_block INT32 [-1]
kv_cache_alloc_new_blocks INT32 [-1]
kv_cache_alloc_total_blocks INT32 [-1]
kv_cache_hit_rate FP32 [-1]"""
    + _PERFORMANCE.rstrip()
)

# Wiring of the ensemble: (tensor of the step's model, tensor of the ensemble).
PREPROCESSING_FROM = {
    "QUERY": "text_input",
    "DECODER_QUERY": "decoder_text_input",
    "REQUEST_OUTPUT_LEN": "max_tokens",
    "BAD_WORDS_DICT": "bad_words",
    "STOP_WORDS_DICT": "stop_words",
    "EMBEDDING_BIAS_WORDS": "embedding_bias_words",
    "EMBEDDING_BIAS_WEIGHTS": "embedding_bias_weights",
    "END_ID": "end_id",
    "PAD_ID": "pad_id",
    "PROMPT_TABLE_EXTRA_ID": "prompt_table_extra_id",
}
PREPROCESSING_TO = {
    "REQUEST_INPUT_LEN": "_REQUEST_INPUT_LEN",
    "INPUT_ID": "_INPUT_ID",
    "REQUEST_DECODER_INPUT_LEN": "_REQUEST_DECODER_INPUT_LEN",
    "DECODER_INPUT_ID": "_DECODER_INPUT_ID",
    "REQUEST_OUTPUT_LEN": "_REQUEST_OUTPUT_LEN",
    "STOP_WORDS_IDS": "_STOP_WORDS_IDS",
    "BAD_WORDS_IDS": "_BAD_WORDS_IDS",
    "EMBEDDING_BIAS": "_EMBEDDING_BIAS",
    "OUT_END_ID": "_PREPROCESSOR_END_ID",
    "OUT_PAD_ID": "_PREPROCESSOR_PAD_ID",
    "OUT_PROMPT_TABLE_EXTRA_IDS": "_OUT_PROMPT_TABLE_EXTRA_IDS",
}
_SAME_NAME = (
    "exclude_input_in_output",
    "temperature",
    "repetition_penalty",
    "min_tokens",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "num_return_sequences",
    "beam_width",
    "prompt_embedding_table",
    "prompt_vocab_size",
    "lora_task_id",
    "lora_weights",
    "lora_config",
    "guided_decoding_guide_type",
    "guided_decoding_guide",
)
ENGINE_FROM = {
    "input_ids": "_INPUT_ID",
    "decoder_input_ids": "_DECODER_INPUT_ID",
    "input_lengths": "_REQUEST_INPUT_LEN",
    "decoder_input_lengths": "_REQUEST_DECODER_INPUT_LEN",
    "request_output_len": "_REQUEST_OUTPUT_LEN",
    "end_id": "_PREPROCESSOR_END_ID",
    "pad_id": "_PREPROCESSOR_PAD_ID",
    "embedding_bias": "_EMBEDDING_BIAS",
    "stop_words_list": "_STOP_WORDS_IDS",
    "bad_words_list": "_BAD_WORDS_IDS",
    "prompt_table_extra_ids": "_OUT_PROMPT_TABLE_EXTRA_IDS",
    "runtime_top_k": "top_k",
    "runtime_top_p": "top_p",
    "len_penalty": "length_penalty",
    "streaming": "stream",
    **{name: name for name in _SAME_NAME},
    **{f"return_{what}": f"return_{what}" for what in _RETURNS},
}
ENGINE_TO = {
    "output_ids": "_TOKENS_BATCH",
    "sequence_length": "_SEQUENCE_LENGTH",
    **{tensor.name: tensor.name for tensor in REPLY_OUTPUTS},
}
POSTPROCESSING_FROM = {"TOKENS_BATCH": "_TOKENS_BATCH", "SEQUENCE_LENGTH": "_SEQUENCE_LENGTH"}
POSTPROCESSING_TO = {"OUTPUT": "text_output"}
