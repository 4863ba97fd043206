"""The page of live charts."""

from __future__ import annotations

import json
import re

from flask import Blueprint, Flask

from loadtest.generator.live_page import add_live_page
from loadtest.generator.progress import History, Progress

LABEL = "emulated, time scale x2"


def _app(history: History) -> Flask:
    """Return a Flask app with what Locust's would have."""
    app, pages = Flask(__name__), Blueprint("locust", __name__)
    pages.add_url_rule("/stop", "stop", lambda: "stopped", methods=["POST"])
    pages.add_url_rule("/swarm", "swarm", lambda: "swarming", methods=["POST"])
    pages.add_url_rule("/stats", "stats", lambda: "figures")
    app.register_blueprint(pages)
    add_live_page(app, history, LABEL)
    return app


def test_the_page_is_marked_and_loads_nothing_from_elsewhere() -> None:
    """The kind of the figures is on it; no address of any other server is."""
    page = _app(History()).test_client().get("/live").get_data(as_text=True)
    assert LABEL in page
    assert "{{" not in page
    assert not re.search(r"(src|href)=[\"'](?!/)|https?://|@import", page)


def test_the_figures_are_the_looks_so_far() -> None:
    """A chart may be drawn at any moment of the run, and after it."""
    history = History()
    client = _app(history).test_client()
    assert json.loads(client.get("/live/points").data) == {"points": [], "has_ended": False}
    look = Progress(t_s=1, load="x", elapsed_s=1, done=3, failed=0, in_flight=2, requests_per_s=3, tokens_per_s=9)
    history.add(look)
    history.has_ended = True
    found = json.loads(client.get("/live/points").data)
    assert found["has_ended"]
    assert [Progress.model_validate(point) for point in found["points"]] == [look]


def test_nobody_steers_a_run_from_the_browser() -> None:
    """Locust's buttons that start and stop are refused; its figures are shown."""
    client = _app(History()).test_client()
    for path in ("/stop", "/swarm"):
        answer = client.post(path)
        assert answer.status_code == 403
        assert "run-load" in answer.get_data(as_text=True)
    assert client.get("/stats").get_data(as_text=True) == "figures"
