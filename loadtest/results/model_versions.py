"""Merges the versions of a model on Triton's metrics page: a replaced one's series stay there, standing still."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple, get_args

from loadtest.results.server_metrics import Counter, meanings_of, parse_series

_LABEL = re.compile(r'(?<=[{,])\s*version\s*=\s*"(?:[^"\\]|\\.)*"\s*,?')
_COUNTERS = frozenset(get_args(Counter))


class _Series(NamedTuple):
    """A series of one version of a model; `text` is without the version. One without a meaning here is averaged."""

    text: str
    model: str
    version: int
    is_counter: bool
    adds_up: bool


class ModelVersions:
    """The versions of each model, followed from sample to sample.

    A version is *running* while its counters grow. While none of a model's do, it is idle, and those that last ran are
    running; before any has, the latest is. Counters of all versions are added, for what they grow by is what the model
    did; gauges are those of the running versions alone.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[int, str, int], list[float]] = {}
        self._running: dict[tuple[int, str], set[int]] = {}

    def merged(self, page: int, values: Mapping[str, float]) -> dict[str, float]:
        """Return the series of a page's next sample, each model's versions merged into one.

        >>> of = 'emulator_steps_total{{model="m",version="{}"}}'
        >>> ModelVersions().merged(0, {of.format(1): 5.0, of.format(2): 3.0, "up": 1.0})
        {'up': 1.0, 'emulator_steps_total{model="m"}': 8.0}
        """
        found = [(series, value) for text, value in values.items() if (series := _series(text)) is not None]
        merged = {text: value for text, value in values.items() if _series(text) is None}
        running = self._running_in(page, found)
        parts: dict[str, list[float]] = defaultdict(list)
        summed: set[str] = set()
        for series, value in found:
            if series.is_counter or series.version in running[series.model]:
                parts[series.text].append(value)
                summed |= {series.text} if series.adds_up else set()
        return merged | {text: sum(each) / (1 if text in summed else len(each)) for text, each in parts.items()}

    def _running_in(self, page: int, found: list[tuple[_Series, float]]) -> dict[str, set[int]]:
        """Return the running versions of each model."""
        counts: dict[tuple[str, int], list[float]] = {}
        for series, value in found:
            own = counts.setdefault((series.model, series.version), [])
            if series.is_counter:
                own.append(value)
        for model in dict.fromkeys(model for model, _ in counts):
            versions = {version for of, version in counts if of == model}
            grown = {each for each in versions if self._grew(page, model, each, counts[model, each])}
            before = self._running.get((page, model), set()) & versions
            self._running[page, model] = grown or before or {max(versions)}
        return {model: self._running[page, model] for model, _ in counts}

    def _grew(self, page: int, model: str, version: int, counts: list[float]) -> bool:
        """Return whether a version's counters changed; those of one that appears beside others began at 0."""
        before = self._counts.get((page, model, version))
        self._counts[page, model, version] = counts
        if before is None:
            return any(counts) and (page, model) in self._running
        return counts != before


@lru_cache(maxsize=4096)
def _series(text: str) -> _Series | None:
    """Return a series that has a model and its version; None for any other."""
    parsed = parse_series(text)
    if parsed is None or "model" not in parsed[1] or not parsed[1].get("version", "").isdecimal():
        return None
    labels, meaning = parsed[1], meanings_of([text]).get(text)
    return _Series(
        text=re.sub(r",\s*}$", "}", _LABEL.sub("", text)),
        model=labels["model"],
        version=int(labels["version"]),
        is_counter=meaning is not None and meaning.quantity in _COUNTERS,
        adds_up=meaning is not None and meaning.adds_up,
    )
