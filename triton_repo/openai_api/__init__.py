"""An OpenAI-compatible front for Triton: a process that speaks HTTP to clients and token ids over gRPC to the engine.

It calls the `tensorrt_llm` model directly. Chat template, tokenization and detokenization happen here, so a streamed
token costs one small gRPC message and one small HTTP chunk, without a Python model in between.
"""

from triton_repo.openai_api.api_keys import KEY_VARIABLE, read_keys

__all__ = ["KEY_VARIABLE", "read_keys"]
