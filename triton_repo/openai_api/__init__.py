"""An OpenAI-compatible front before Triton's gRPC: one process that speaks HTTP to clients and token ids to the engine.

It talks to the `tensorrt_llm` model directly. Chat template, tokenizing and detokenizing happen here, so that one
streamed token costs one small gRPC message and one small HTTP chunk, and no Python model in between.
"""

from triton_repo.openai_api.api_keys import KEY_VARIABLE, read_keys

__all__ = ["KEY_VARIABLE", "read_keys"]
