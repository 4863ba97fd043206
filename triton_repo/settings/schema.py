"""The schema of a serving YAML: how an engine is served.

Every setting states the model and parameter of TensorRT-LLM that it sets, TensorRT-LLM's default, and whether an
emulated engine is affected by it. Tables, `--explain` and checks read them from here.
"""

from __future__ import annotations

from engines.files import Strict
from triton_repo.settings.server_settings import Emulation, InputLimits, LlmApi, Processes, Queue, Text
from triton_repo.settings.tensorrt_llm_settings import (
    Decoding,
    KvCacheSettings,
    LoraCache,
    RuntimeSettings,
    Scheduling,
    Types,
)


class ServingSettings(Strict):
    """The settings that belong to the server, not the engine."""

    scheduling: Scheduling = Scheduling()
    queue: Queue = Queue()
    kv_cache: KvCacheSettings = KvCacheSettings()
    decoding: Decoding = Decoding()
    types: Types = Types()
    runtime: RuntimeSettings = RuntimeSettings()
    lora: LoraCache = LoraCache()
    processes: Processes = Processes()
    text: Text = Text()
    limits: InputLimits = InputLimits()
    emulation: Emulation = Emulation()
    llmapi: LlmApi = LlmApi()
