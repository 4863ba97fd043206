"""Results of simulated requests: columns with spans of iterations, and records."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from struct import Struct

import numpy as np

from loadtest.results import OUTCOMES, PHASES, UNKNOWN, Columns, Floats, TokenSpans
from loadtest.simulate.virtual_server import Ended

_INTS = (
    *("id", "level", "phase", "outcome", "prompt_tokens", "asked_tokens", "cached_tokens"),
    *("conversation", "turn", "class_name", "error"),
)
_FLOATS = ("sent_s", "done_s")
_PACKED = Struct(f"{len(_INTS) + len(_FLOATS)}d").pack
_PHASES = {phase: place for place, phase in enumerate(PHASES)}
_OUTCOMES = {outcome: place for place, outcome in enumerate(OUTCOMES)}
_MEASURE, _OK = PHASES.index("measure"), OUTCOMES.index("ok")


@dataclass(slots=True)
class SimulatedRequests:
    """Collects requests as they end, level by level; memory per request is independent of its reply's length.

    Attributes:
        measure_s: When the first measured request of this level was sent; infinity before that.
        last_id: The highest id of this level; -1 before the first.
    """

    measure_s: float = math.inf
    last_id: int = -1
    _values: array[float] = field(default_factory=lambda: array("d"))  # _INTS and _FLOATS, one request after another
    _spans: array[int] = field(default_factory=lambda: array("q"))  # row, first, last, one span after another
    _counts: array[int] = field(default_factory=lambda: array("q"))  # tokens of each response, with speculation only
    _left_s: list[Floats] = field(default_factory=list)
    _iterations: int = 0
    _rows: int = 0
    _names: dict[str, int] = field(default_factory=dict)
    _errors: dict[str, int] = field(default_factory=dict)

    def begin_level(self) -> None:
        """Start a level, whose iterations its server numbers from 0."""
        self.measure_s, self.last_id = math.inf, -1

    def add(self, ended: Ended, level: int, now_s: float) -> None:
        """Add a request that ended; a failed one ends now."""
        (turn, sent_s, prompt_tokens, *_), spans, outcome, cause, cached_tokens, counts = ended
        phase = _PHASES[turn.phase]
        if phase == _MEASURE and sent_s < self.measure_s:
            self.measure_s = sent_s
        self.last_id = max(self.last_id, turn.id)
        self._values.frombytes(
            _PACKED(
                turn.id,
                level,
                phase,
                _OUTCOMES[outcome],
                prompt_tokens,
                turn.output_tokens if turn.exact else UNKNOWN,
                UNKNOWN if cached_tokens is None else cached_tokens,
                UNKNOWN if turn.conversation is None else turn.conversation,
                turn.place,
                _place(self._names, turn.class_name),
                _place(self._errors, cause),
                sent_s,
                now_s,
            )
        )
        for first, last in spans:
            self._spans.extend((self._rows, self._iterations + first, self._iterations + last))
        self._counts.extend(counts)
        self._rows += 1

    def end_level(self, left_s: Floats) -> None:
        """Set when the tokens of each of the level's iterations left."""
        self._left_s.append(left_s)
        self._iterations += len(left_s)

    def columns(self) -> Columns:
        """Return the requests of all levels, in the order in which they ended."""
        table = np.array(self._values).reshape(-1, len(_INTS) + len(_FLOATS)).T
        ints = {name: table[place].astype(np.int64) for place, name in enumerate(_INTS)}
        sent_s, done_s = table[len(_INTS)].copy(), table[len(_INTS) + 1]
        row, first, last = np.array(self._spans, dtype=np.int64).reshape(-1, 3).T.copy()
        left_s = np.concatenate(self._left_s) if self._left_s else np.zeros(0)
        counts = np.array(self._counts, dtype=np.int64) if self._counts else None
        spans = TokenSpans(left_s, row, first, last, self._rows, counts)
        tokens, responses = spans.token_counts(), spans.response_counts()
        first_s, second_s, last_s = spans.notable_times_s()
        return Columns(
            **ints,
            scheduled_s=sent_s,
            sent_s=sent_s,
            first_s=first_s,
            second_s=second_s,
            last_s=last_s,
            done_s=np.where(ints["outcome"] == _OK, last_s, done_s),
            queue_s=np.full(self._rows, np.nan),
            tokens=tokens,
            responses=responses,
            output_tokens=tokens,
            bundled_tokens=tokens - responses,
            worker=np.zeros(self._rows, dtype=np.int64),
            spans=spans,
            names=tuple(self._names),
            errors=tuple(self._errors),
        )


def _place(known: dict[str, int], text: str | None) -> int:
    return UNKNOWN if text is None else known.setdefault(text, len(known))


def record_lines(columns: Columns) -> Iterator[str]:
    """Yield each simulated request as a line of requests.jsonl; see `RequestRecord`.

    A time is formatted once per iteration, for all requests with a token in it.

    Raises:
        ValueError: These are not simulated requests.
    """
    spans = columns.spans
    if spans is None:
        raise ValueError("records of simulated requests have spans")
    times = list(map(repr, spans.left_s.tolist()))
    begins = np.searchsorted(spans.row, np.arange(len(columns) + 1)).tolist()
    first, last = spans.first.tolist(), spans.last.tolist()
    ints = {name: getattr(columns, name).tolist() for name in _INTS}
    counts = iter(()) if spans.counts is None else iter(spans.counts.tolist())
    sent_s, done_s = columns.sent_s.tolist(), columns.done_s.tolist()
    for row, (begin, end) in enumerate(pairwise(begins)):
        own = [time for place in range(begin, end) for time in times[first[place] : last[place] + 1]]
        responses = len(own)
        if spans.counts is not None:
            own = [time for time, count in zip(own, counts, strict=False) for _ in range(count)]
        of = {name: values[row] for name, values in ints.items()}
        head = {
            "id": of["id"],
            "level": of["level"],
            "phase": PHASES[of["phase"]],
            "scheduled_s": sent_s[row],
            "sent_s": sent_s[row],
        }
        tail = {
            "done_s": done_s[row],
            "prompt_tokens": of["prompt_tokens"],
            "output_tokens": len(own),
            "outcome": OUTCOMES[of["outcome"]],
            "error": None if of["error"] == UNKNOWN else columns.errors[of["error"]],
            "asked_tokens": _known(of["asked_tokens"]),
            "bundled_tokens": len(own) - responses,
            "queue_s": None,
            "cached_tokens": _known(of["cached_tokens"]),
            "class_name": None if of["class_name"] == UNKNOWN else columns.names[of["class_name"]],
            "conversation": _known(of["conversation"]),
            "turn": of["turn"],
            "worker": 0,
            "finish_reason": None,
        }
        yield f'{_compact(head)[:-1]},"token_times_s":[{",".join(own)}],{_compact(tail)[1:]}'


def _known(value: int) -> int | None:
    return None if value == UNKNOWN else value


def _compact(values: dict[str, object]) -> str:
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False)
