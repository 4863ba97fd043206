"""Hand-made runs for tests whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence

from engines.files import made_by
from loadtest.results.records import Level, Outcome, RequestRecord, RunManifest, ServerFacts
from loadtest.scenario.schema import Scenario

GENERATION = 'nv_trt_llm_inflight_batcher_metrics{inflight_batcher_specific_metric="generation_requests",model="m"}'


def record(
    number: int,
    sent_s: float,
    tokens: Sequence[float],
    *,
    outcome: Outcome = "ok",
    warmup: bool = False,
    level: int = 0,
) -> RequestRecord:
    """Return a request that ended with its last token."""
    return RequestRecord(
        id=number,
        level=level,
        phase="warmup" if warmup else "measure",
        scheduled_s=sent_s,
        sent_s=sent_s,
        token_times_s=tuple(tokens),
        done_s=tokens[-1] if tokens else sent_s + 1.0,
        prompt_tokens=8,
        output_tokens=len(tokens),
        outcome=outcome,
        error=None if outcome == "ok" else "it failed",
    )


def level(concurrency: int, measure_s: float, end_s: float, *, complete: bool = True) -> Level:
    """Return a level that began as it was measured."""
    return Level(
        concurrency=concurrency,
        isl=8,
        osl=4,
        begin_s=measure_s,
        measure_s=measure_s,
        end_s=end_s,
        complete=complete,
    )


def manifest(*levels: Level, time_scale: float = 1.0, interrupted: str | None = None) -> RunManifest:
    """Return an emulated run of these levels."""
    server = ServerFacts(
        url="http://127.0.0.1:8000",
        protocol="triton-http",
        model="tensorrt_llm",
        triton_version="2.68.0",
        emulated=True,
        time_scale=time_scale,
    )
    return RunManifest(
        made_by=made_by("run-load"),
        kind="emulated",
        time_scale=time_scale,
        server=server,
        scenario=Scenario(requests=1),
        levels=list(levels),
        interrupted=interrupted,
    )
