"""A page of live charts, in addition to Locust's own pages."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from loadtest.generator.progress import History

NOT_HERE = "only run-load controls this run: press Ctrl-C there to end it\n"
STEERING = ("locust.swarm", "locust.stop", "locust.reset_stats", "locust.update_user")


def add_live_page(app: Any, history: History, label: str) -> None:
    """Add the page `/live` and its data `/live/points` to a Flask app; remove pages that would control the run.

    Args:
        app: Locust's Flask app, not started yet.
        history: Filled during the run.
        label: Label of every figure: measured, or emulated with its time scale.
    """
    page = (
        files("loadtest.generator").joinpath("live_page.html").read_text(encoding="utf-8").replace("{{ label }}", label)
    )

    def points() -> Any:
        found = {"points": [point.model_dump() for point in history.points], "has_ended": history.has_ended}
        return app.response_class(json.dumps(found), mimetype="application/json")

    app.add_url_rule("/live", "live", lambda: page)
    app.add_url_rule("/live/points", "live_points", points)
    for name in STEERING:
        if name in app.view_functions:
            app.view_functions[name] = lambda **_: app.response_class(NOT_HERE, status=403, mimetype="text/plain")
