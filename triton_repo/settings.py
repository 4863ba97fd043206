"""How a repository serves an engine: the schema of a serving YAML, and of the repository's own manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from engines.files import Document, Strict, read_json
from engines.manifest import EngineManifest

REPOSITORY_NAME = "manifest.json"
MODELS = ("preprocessing", "tensorrt_llm", "postprocessing", "ensemble", "tensorrt_llm_bls")
DEFAULT_TIME_SCALE = 4.0


class ServingSettings(Strict):
    """What is not the engine's but the server's to decide.

    Attributes:
        max_queue_size: Requests that may wait for a slot; 0: no limit. Past it, a request is refused at once.
        queue_delay_us: How long Triton's dynamic batcher may hold a request back to batch it with others.
        preprocessing_instances: Processes that tokenize.
        postprocessing_instances: Processes that detokenize; more than one forget what another has seen of a stream.
        bls_instances: Requests the business-logic model serves at the same time.
        time_scale: Wall seconds of one engine second, for an emulated engine.
        cancellation_check_period_ms: How often cancelled requests are looked for.
        stats_check_period_ms: How often metrics are refreshed.
    """

    max_queue_size: Annotated[int, Field(ge=0)] = 0
    queue_delay_us: Annotated[int, Field(ge=0)] = 0
    preprocessing_instances: Annotated[int, Field(ge=1, le=64)] = 1
    postprocessing_instances: Annotated[int, Field(ge=1, le=1)] = 1
    bls_instances: Annotated[int, Field(ge=1, le=1024)] = 1
    time_scale: Annotated[float, Field(gt=0)] = DEFAULT_TIME_SCALE
    cancellation_check_period_ms: Annotated[int, Field(ge=1)] = 100
    stats_check_period_ms: Annotated[int, Field(ge=10)] = 100


class RepositoryManifest(Document):
    """`manifest.json` of a model repository: the settings it was rendered with, and the engine's own manifest.

    Attributes:
        served_at: Absolute path the repository must have where it is served; its models hold it.
    """

    kind: str
    served_at: str
    settings: ServingSettings
    engine: EngineManifest


def read_repository(folder: Path) -> RepositoryManifest:
    """Read a repository's manifest; errors as `files.read_json`."""
    return read_json(folder / REPOSITORY_NAME, RepositoryManifest)
