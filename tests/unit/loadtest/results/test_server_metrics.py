"""Metrics pages are read as prometheus_client reads them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from loadtest.results import parse_metrics, parse_series

LABELS = st.dictionaries(st.from_regex(r"[a-z][a-z_]{0,6}", fullmatch=True), st.text(max_size=12), max_size=3)


@given(LABELS, st.floats(allow_nan=False))
def test_a_page_is_read_as_prometheus_reads_it(labels: dict[str, str], value: float) -> None:
    """Names, labels with any text in them, and values are the library's, on pages that the library wrote."""
    registry = CollectorRegistry()
    gauge = Gauge("emulator_steps", "help", list(labels), registry=registry)
    (gauge.labels(**labels) if labels else gauge).set(value)
    page = generate_latest(registry).decode()
    expected = [(each.name, each.labels, each.value) for family in text_string_to_metric_families(page)
                for each in family.samples]  # fmt: skip
    found = []
    for text, number in parse_metrics(page.replace("\r", "?")).items():
        parsed = parse_series(text)
        assert parsed is not None
        found.append((*parsed, number))
    assert found == [
        (name, {key: text.replace("\r", "?") for key, text in of.items()}, number) for name, of, number in expected
    ]


def test_lines_that_are_no_samples_are_left_out() -> None:
    """Comments, other metrics and torn lines are not read; a time after the value is."""
    page = '# TYPE emulator_steps_total counter\nemulator_steps_total{model="a}b"} 3 1700000000\nemulator_steps_total{'
    assert parse_metrics(page) == {'emulator_steps_total{model="a}b"}': 3.0}
