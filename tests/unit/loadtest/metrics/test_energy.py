"""Joules per token from the pages of a DCGM exporter and of Triton, as prometheus_client writes and reads them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from loadtest.metrics.batch_size import samples_of
from loadtest.metrics.energy import energy_of
from loadtest.metrics.steady_state import Window
from loadtest.metrics.summary import Energy
from loadtest.results import Sample, parse_metrics

WINDOW = Window(10.0, 70.0, "steady")
RATES = {"output_tokens_per_s": 1000.0, "input_tokens_per_s": 3000.0, "requests_per_s": 5.0}
LABELS = ("gpu", "UUID", "pci_bus_id", "device", "modelName", "Hostname")


def _dcgm(joules: float | None, watts: float | None, *, gpu: int = 0) -> str:
    """Return a page as DCGM's exporter writes it: watts, and millijoules since the driver was loaded."""
    registry = CollectorRegistry()
    labels = (str(gpu), f"GPU-{gpu}", "00000000:65:00.0", f"nvidia{gpu}", "NVIDIA H100 80GB HBM3", "node-1")
    if watts is not None:
        gauge = Gauge("DCGM_FI_DEV_POWER_USAGE", "Power draw (in W).", LABELS, registry=registry)
        gauge.labels(*labels).set(watts)
    page = generate_latest(registry).decode()
    if joules is not None:  # the exporter's counter has no suffix _total, which prometheus_client would add
        counter = Gauge("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "mJ", LABELS, registry=CollectorRegistry())
        counter.labels(*labels).set(joules * 1e3)
        head = "# HELP DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION Total energy consumption since boot (in mJ).\n"
        text = ",".join(f'{name}="{value}"' for name, value in zip(LABELS, labels, strict=True))
        page += head + "# TYPE DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION counter\n"
        page += f"DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{{text}}} {joules * 1e3:.0f}\n"
    assert list(text_string_to_metric_families(page))
    return page


def _triton(joules: float, watts: float, *, uuid: str) -> str:
    registry = CollectorRegistry()
    Gauge("nv_gpu_power_usage", "GPU power usage in watts", ["gpu_uuid"], registry=registry).labels(uuid).set(watts)
    page = generate_latest(registry).decode()
    return page + f'# TYPE nv_energy_consumption counter\nnv_energy_consumption{{gpu_uuid="{uuid}"}} {joules}\n'


def _sample(t_s: float, page: str, number: int = 0) -> Sample:
    return Sample(t_s=t_s, values=parse_metrics(page), page=number)


def _energy(samples: list[Sample], **changed: object) -> tuple[Energy | None, str | None]:
    facts: dict[str, object] = {"kind": "measured", "time_scale": 1.0, "rates": RATES} | changed
    return energy_of(samples_of(samples).meters, WINDOW, **facts)  # type: ignore[arg-type]


TIMES = np.arange(0.0, 80.0, 0.5)


def test_the_energy_counter_is_read_at_the_ends_of_the_window() -> None:
    """100 W before the window and after it, 600 W within: 0.6 J an output token, 0.15 a token, 120 a request."""
    joules = np.interp(TIMES, [0, 10, 70, 80], [5e6, 5e6 + 1000, 5e6 + 37000, 5e6 + 38000])
    found, reason = _energy([_sample(t, _dcgm(j, None)) for t, j in zip(TIMES, joules, strict=True)])
    assert reason is None
    assert found is not None
    assert found.power_w == pytest.approx(600.0, rel=2e-3)
    assert (found.gpus, found.method) == (1, "energy counter")
    assert found.j_per_output_token == pytest.approx(0.6, rel=2e-3)
    assert found.j_per_token == pytest.approx(0.15, rel=2e-3)
    assert found.j_per_request == pytest.approx(120.0, rel=2e-3)


def test_a_gpu_on_two_pages_counts_once_and_two_gpus_add_up() -> None:
    """Triton and the exporter report the same GPU by its UUID; the exporter's second GPU is another one."""
    samples = []
    for t in TIMES:
        samples.append(_sample(t, _triton(400.0 * t, 400.0, uuid="GPU-0")))
        samples.append(_sample(t, _dcgm(400.0 * t, 400.0) + _dcgm(250.0 * t, 250.0, gpu=1), 1))
    found, _ = _energy(samples)
    assert found is not None
    assert found.gpus == 2
    assert found.power_w == pytest.approx(650.0, rel=1e-3)


def test_power_readings_serve_where_there_is_no_counter() -> None:
    """The mean of the readings in the window; readings outside it do not count."""
    watts = np.where((TIMES >= 10) & (TIMES <= 70), 500.0 + np.sin(TIMES), 100.0)
    found, _ = _energy([_sample(t, _dcgm(None, w)) for t, w in zip(TIMES, watts, strict=True)])
    assert found is not None
    assert found.method == "mean of power readings"
    assert found.power_w == pytest.approx(500.0, abs=1.0)


@pytest.mark.parametrize(
    ("samples", "kind", "reason"),
    [
        (lambda: [Sample(t_s=1.0, values={"x": 1.0})], "measured", "--power-url"),
        (lambda: [_sample(t, _dcgm(9.0, 0.0)) for t in TIMES], "measured", "moved 0 times"),
        (lambda: [_sample(t, _dcgm(None, 0.0)) for t in TIMES], "measured", "none above zero"),
        (lambda: [_sample(t, _dcgm(9223372036854775.794, None)) for t in TIMES], "measured", "--power-url"),
        (lambda: [_sample(t, _dcgm(30 * 400.0 * (t // 30), None)) for t in TIMES], "measured", "--collect-interval"),
        (lambda: [_sample(t, _dcgm(400.0 * (t if t < 40 else t - 40), None)) for t in TIMES], "measured", "reset"),
        (lambda: [_sample(t, _dcgm(400.0 * t, None)) for t in TIMES if t < 50], "measured", "from the start of"),
        (
            lambda: [_sample(t, _dcgm(400.0 * t, 400.0)) for t in TIMES],
            "emulated",
            "Triton's metrics page (--metrics-url)",
        ),
        (lambda: [_sample(t, _dcgm(400.0 * t, 400.0)) for t in TIMES], "predicted", "no joules of the power model"),
    ],
    ids=["no page", "still", "zero", "unsupported", "30 s exporter", "reset", "exporter died", "emulated", "predicted"],
)
def test_what_is_unknown_is_no_zero(samples: Callable[[], list[Sample]], kind: str, reason: str) -> None:
    """No page, a dead or slow exporter, a reset, a GPU that reports nothing, a machine without one: the reason."""
    found, told = _energy(samples(), kind=kind)
    assert found is None
    assert reason in (told or "")
