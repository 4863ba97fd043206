"""Sampling a server's metrics beside a run."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from engines.errors import MissingError
from loadtest.results.records import SAMPLES_NAME, read_samples
from loadtest.run import sampler
from loadtest.run.sampler import MetricsPage, Monitor, power_readings, read_metrics, require_page


class _Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """Answer with two series, one of which is kept."""
        body = b'emulator_steps_total{model="m"} 3\nother 1\n'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    """Serve a page of metrics."""
    server = http.server.HTTPServer(("127.0.0.1", 0), _Page)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/metrics"
    server.shutdown()
    thread.join()
    server.server_close()


def test_samples_carry_the_runs_clock(url: str, tmp_path: Path) -> None:
    """Each sample is stamped with the clock it was given, and holds the series that are kept."""
    with Monitor([partial(read_metrics, MetricsPage(url))], tmp_path / SAMPLES_NAME, 0.02, lambda: 42.0):
        deadline_s = time.monotonic() + 20
        while not (tmp_path / SAMPLES_NAME).exists() or (tmp_path / SAMPLES_NAME).read_text().count("\n") < 2:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
    sample = next(read_samples(tmp_path))
    assert (sample.t_s, sample.values) == (42.0, {'emulator_steps_total{model="m"}': 3.0})


def test_a_full_disk_ends_the_sampling_with_the_systems_words(url: str) -> None:
    """No traceback out of a thread: whoever follows the run finds out why."""
    with Monitor([partial(read_metrics, MetricsPage(url))], Path("/dev/full"), 0.02, time.monotonic) as monitor:
        deadline_s = time.monotonic() + 20
        while monitor.failed is None and time.monotonic() < deadline_s:
            time.sleep(0.01)
    assert monitor.failed == "/dev/full: No space left on device"


def test_a_page_without_an_end_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page is read up to a limit: one that never ends would fill the memory."""
    require_page(MetricsPage(url))
    monkeypatch.setattr(sampler, "PAGE_LIMIT_BYTES", 20)
    with pytest.raises(MissingError, match="the metrics page cannot be read: it has more than"):
        require_page(MetricsPage(url))


def test_without_a_page_nothing_is_sampled(tmp_path: Path) -> None:
    """A server without metrics is no error."""
    with Monitor([], tmp_path / SAMPLES_NAME, 0.02, time.monotonic):
        pass
    assert not (tmp_path / SAMPLES_NAME).exists()


def test_only_the_chosen_gpus_of_a_page_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exporter shows every GPU of its machine; by index or UUID, the server's own are taken, and nothing else."""
    page = {
        'DCGM_FI_DEV_POWER_USAGE{gpu="0",UUID="GPU-a"}': 300.0,
        'DCGM_FI_DEV_POWER_USAGE{gpu="1",UUID="GPU-b"}': 200.0,
        'emulator_steps_total{model="m"}': 3.0,
    }
    monkeypatch.setattr("loadtest.run.sampler.read_metrics", lambda _: page)
    assert list(power_readings("-", ()).values()) == [300.0, 200.0]
    assert list(power_readings("-", ("1",)).values()) == [200.0]
    assert list(power_readings("-", ("GPU-a",)).values()) == [300.0]
    assert power_readings("-", ("7",)) == {}
    page.clear()
    assert power_readings("-", ()) == {}
