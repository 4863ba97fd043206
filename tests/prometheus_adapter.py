"""What prometheus-adapter asks Prometheus."""

from __future__ import annotations

from typing import Any


def adapter_query(rule: dict[str, Any], *, group: str, matchers: str) -> str:
    """Return what prometheus-adapter asks for a rule, its names put into the template as its documentation says."""
    series = rule["seriesQuery"].partition("{")[0]
    names = {"<<.Series>>": series, "<<.LabelMatchers>>": matchers, "<<.GroupBy>>": group}
    query = str(rule["metricsQuery"])
    for name, value in names.items():
        query = query.replace(name, value)
    return query
