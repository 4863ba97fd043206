"""What an emulated engine publishes on Triton's metrics page against facts of upstream's metrics reporter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines.emulator import Batcher, BatcherSettings, Request
from engines.files import Document, MadeBy
from engines.planning import emulated_manifest
from engines.planning.plan import make_plan
from engines.planning.recipe import resolve_recipe
from engines.steptime import step_time_for
from tests.facts import read_facts
from triton_repo.models.engine_clock import Lateness
from triton_repo.models.engine_metrics import ENERGY_NAME, EngineMetrics

FACTS: dict[str, Any] = read_facts(Path(__file__).parent / "triton_interface.yaml")["metrics"]
LABELS = {"model": "tensorrt_llm", "version": "1"}
SLOTS = 8


class RecordingFamily:
    """A metric family that remembers what was made of it and what it was set to."""

    GAUGE, COUNTER, HISTOGRAM = "gauges", "counters", "histograms"
    made: dict[str, RecordingFamily]

    def __init__(self, *, name: str, description: str, kind: str) -> None:
        self.kind, self.help = kind, description
        self.values: dict[tuple[tuple[str, str], ...], list[float]] = {}
        self.buckets: list[int] = []
        type(self).made[name] = self

    def Metric(self, *, labels: dict[str, str], buckets: list[int] | None = None) -> RecordingMetric:  # noqa: N802
        """Return one series of the family."""
        self.buckets = buckets or []
        return RecordingMetric(self.values.setdefault(tuple(sorted(labels.items())), []))


class RecordingMetric:
    """One series: every value it was given."""

    def __init__(self, values: list[float]) -> None:
        self.set = self.increment = self.observe = values.append


class Backend:
    """What of Triton's module the metrics need."""

    def __init__(self) -> None:
        self.MetricFamily = type("Family", (RecordingFamily,), {"made": {}})


@pytest.fixture
def backend() -> Backend:
    """Return a stand-in for Triton's module, with nothing made yet."""
    return Backend()


def _publish(backend: Backend, batcher: Batcher) -> None:
    EngineMetrics(backend, LABELS).publish(batcher.snapshot(), Lateness())


def _batcher(*, blocks: int) -> Batcher:
    asked = resolve_recipe(None, {})
    manifest = emulated_manifest(
        make_plan(asked, head=Document(made_by=MadeBy(command="test", version="0"))), asked.recipe
    )
    settings = BatcherSettings(
        max_batch_size=SLOTS, max_num_tokens=8192, max_seq_len=2048, tokens_per_block=64, kv_blocks=blocks
    )
    return Batcher(settings, step_time_for(manifest))


def _emulated(families: dict[str, Any]) -> dict[str, Any]:
    """Return what is emulated of families: those marked otherwise are left out, and categories too."""
    found = {name: family for name, family in families.items() if family.get("emulated", True)}
    return {
        name: {key for key, fact in family["categories"].items() if fact.get("emulated", True)}
        for name, family in found.items()
    }


@pytest.mark.parametrize("kind", ["gauges", "counters", "histograms"])
def test_families_labels_and_words_are_upstreams(backend: Backend, kind: str) -> None:
    """Each emulated family has upstream's kind, help text, label, categories and buckets; none has another's name."""
    _publish(backend, _batcher(blocks=512))
    made = {
        name: family
        for name, family in backend.MetricFamily.made.items()
        if family.kind == kind and not name.startswith("emulator_")
    }
    assert made.keys() == _emulated(FACTS[kind]).keys()
    for name, family in made.items():
        fact = FACTS[kind][name]
        assert family.help == fact["help"]
        assert family.buckets == fact.get("buckets", [])
        wanted = {tuple(sorted({fact["label"]: each, **LABELS}.items())) for each in _emulated(FACTS[kind])[name]}
        assert family.values.keys() == wanted


def test_energy_is_published_where_the_power_model_covers_the_engine(backend: Backend) -> None:
    """The counter grows by what was added since; without a power model there is no such series, and no zero."""
    metrics, state = EngineMetrics(backend, LABELS), _batcher(blocks=512).snapshot()
    metrics.publish(state, Lateness())
    assert ENERGY_NAME not in backend.MetricFamily.made
    for joules in (10.0, 25.0, 25.0):
        metrics.publish(state, Lateness(), energy_j=joules)
    assert list(backend.MetricFamily.made[ENERGY_NAME].values.values()) == [[10.0, 15.0]]


def _requests(backend: Backend, batcher: Batcher) -> dict[str, float]:
    """Run one step; return what is published of requests by category, and the emulator's own count of the waiting."""
    batcher.begin(0.0)
    _publish(backend, batcher)
    made = backend.MetricFamily.made
    found = {
        dict(labels)["request_type"]: values[-1] for labels, values in made["nv_trt_llm_request_metrics"].values.items()
    }
    [[waits]] = made["emulator_waiting_requests"].values.values()
    return {**found, "emulator_waiting": waits}


def test_with_a_full_batch_waiting_is_0_however_long_the_queue(backend: Backend) -> None:
    """Upstream counts what the batch manager has taken, at most max; what the executor holds is in no category."""
    batcher = _batcher(blocks=512)
    for number in range(SLOTS + 50):
        batcher.submit(Request(number, 64, 64), 0.0)
    assert _requests(backend, batcher) == {
        "active": SLOTS, "max": SLOTS, "scheduled": SLOTS, "context": SLOTS, "waiting": 0, "emulator_waiting": 50
    }  # fmt: skip


def test_waiting_counts_what_was_taken_and_finds_no_blocks(backend: Backend) -> None:
    """Where KV blocks are short the batch manager takes requests that no step runs: those, and those alone, wait."""
    batcher = _batcher(blocks=6)  # each request reserves two blocks of 64 tokens
    for number in range(SLOTS + 50):
        batcher.submit(Request(number, 64, 64), 0.0)
    assert _requests(backend, batcher) == {
        "active": SLOTS, "max": SLOTS, "scheduled": 3, "context": 3, "waiting": 5, "emulator_waiting": 55
    }  # fmt: skip


def test_the_llm_api_publishes_none_of_them(backend: Backend) -> None:
    """Its model makes no metric family upstream; the emulated twin's are all under the emulator's own names."""
    assert FACTS["llmapi"] == []
    EngineMetrics(backend, LABELS, cpp_backend=False).publish(_batcher(blocks=512).snapshot(), Lateness())
    assert {name for name in backend.MetricFamily.made if not name.startswith("emulator_")} == set()


def test_the_queue_is_published_by_no_family() -> None:
    """The facts say so, so that dashboards and autoscaling stand on something else."""
    fields = {fact.get("of") for family in FACTS["gauges"].values() for fact in family["categories"].values()}
    assert not fields & set(FACTS["unpublished"])
