"""Records as columns: a run's requests as arrays, read in one pass, so that a million fit in memory.

Times are wall seconds since the start of the run, as in the records. Beyond MANY_TOKENS, gaps between tokens are stored
in single precision: the error of a 10 ms gap is below one nanosecond, and a token takes four bytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from loadtest.results.records import INCOMPLETE, Outcome, Phase, RequestRecord
from loadtest.results.token_spans import TokenSpans

Floats: TypeAlias = npt.NDArray[np.float64]
Gaps: TypeAlias = npt.NDArray[np.float64] | npt.NDArray[np.float32]
Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]

PHASES: tuple[Phase, ...] = get_args(Phase)
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
UNKNOWN = -1
CHUNK_TOKENS = 1_000_000
MANY_TOKENS = 16_000_000

_FLOATS = ("scheduled_s", "sent_s", "done_s", "queue_s")
_INTS = ("id", "level", "prompt_tokens", "output_tokens", "bundled_tokens", "turn", "worker")
_MAYBE_INTS = ("asked_tokens", "cached_tokens", "conversation")


class TokenChunk(NamedTuple):
    """The tokens of some requests, or their responses.

    Attributes:
        row: The request of each token, or response.
        time_s: Its arrival time.
    """

    row: Ints
    time_s: Floats


@dataclass(frozen=True)
class Columns:
    """Requests, one entry each, in the order in which they ended.

    Attributes:
        phase: Index into `PHASES`.
        outcome: Index into `OUTCOMES`.
        first_s: Arrival of the first token; nan without one; `second_s` and `last_s` likewise.
        tokens: Number of tokens that arrived.
        responses: Number of responses in which they arrived: `tokens`, or fewer if some had several.
        own_gaps_s: All gaps, one request after another, if recorded; see `gaps_s`.
        own_counts: Tokens of each response, one request after another; None: one each, or simulated.
        spans: The same for simulated requests, as spans of iterations; exactly one of the two is set.
        asked_tokens: UNKNOWN if not recorded; likewise `cached_tokens`, `conversation`.
        queue_s: nan if not reported.
        class_name: Index into `names`; UNKNOWN if all requests are of one kind.
        error: Index into `errors`; UNKNOWN without an error.
    """

    id: Ints
    level: Ints
    phase: Ints
    outcome: Ints
    scheduled_s: Floats
    sent_s: Floats
    first_s: Floats
    second_s: Floats
    last_s: Floats
    done_s: Floats
    queue_s: Floats
    tokens: Ints
    responses: Ints
    prompt_tokens: Ints
    output_tokens: Ints
    asked_tokens: Ints
    cached_tokens: Ints
    bundled_tokens: Ints
    conversation: Ints
    turn: Ints
    worker: Ints
    class_name: Ints
    error: Ints
    own_gaps_s: Gaps | None = None
    own_counts: Ints | None = None
    spans: TokenSpans | None = None
    names: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return how many requests there are."""
        return len(self.id)

    @property
    def measured(self) -> Bools:
        """Which requests were measured to their end."""
        chosen: Bools = (self.phase == PHASES.index("measure")) & ~self._ended_by_the_run
        return chosen

    @property
    def incomplete(self) -> Bools:
        """Which requests were being measured when the run ended them: they neither succeeded nor failed."""
        chosen: Bools = (self.phase == PHASES.index("measure")) & self._ended_by_the_run
        return chosen

    @property
    def _ended_by_the_run(self) -> Bools:
        return np.isin(self.outcome, [OUTCOMES.index(each) for each in INCOMPLETE])

    @property
    def good(self) -> Bools:
        """Which requests succeeded with a token."""
        chosen: Bools = (self.outcome == OUTCOMES.index("ok")) & (self.tokens > 0)
        return chosen

    @cached_property
    def starts(self) -> Ints:
        """Start of each request's gaps in `gaps_s`, and the end of the last one's; shape (requests + 1,)."""
        return np.concatenate([[0], np.cumsum(np.maximum(self.responses - 1, 0))]).astype(np.int64)

    @property
    def gaps_s(self) -> Gaps:
        """Every gap between responses; those of request i are `gaps_s[starts[i]:starts[i + 1]]`. Shape (gaps,)."""
        if self.own_gaps_s is not None:
            return self.own_gaps_s
        return np.zeros(0) if self.spans is None else self.spans.gaps_s()

    @property
    def tpot_s(self) -> Floats:
        """Time per output token after the first of each request; nan of a single token."""
        gaps = self.tokens - 1
        return np.where(gaps > 0, (self.last_s - self.first_s) / np.maximum(gaps, 1), np.nan)

    @property
    def longest_gap_s(self) -> Floats:
        """Longest gap of each request; 0 where it has none."""
        if self.spans is not None:
            return self.spans.longest_gap_s()
        longest = np.zeros(len(self))
        some = np.diff(self.starts) > 0
        if some.any():
            longest[some] = np.maximum.reduceat(self.gaps_s, self.starts[:-1][some])
        return longest

    def select(self, chosen: Bools) -> Columns:
        """Return the selected requests, in the same order."""
        if chosen.all():
            return self
        changed: dict[str, Any] = {
            field.name: getattr(self, field.name)[chosen] for field in fields(self) if field.name not in _APART
        }
        gaps = None if self.own_gaps_s is None else self.own_gaps_s[np.repeat(chosen, np.diff(self.starts))]
        counts = None if self.own_counts is None else self.own_counts[np.repeat(chosen, self.responses)]
        spans = None if self.spans is None else self.spans.select(chosen)
        return Columns(**changed, own_gaps_s=gaps, own_counts=counts, spans=spans, names=self.names, errors=self.errors)

    def of_class(self, name: str) -> Columns:
        """Return the requests of a class, in the same order; none if there is no such class."""
        if name not in self.names:
            return self.select(np.zeros(len(self), dtype=bool))
        return self.select(self.class_name == self.names.index(name))

    def take(self, places: Ints) -> Columns:
        """Return the requests at some indices, in that order."""
        if len(places) == len(self) and bool((places == np.arange(len(self))).all()):
            return self
        changed: dict[str, Any] = {
            field.name: getattr(self, field.name)[places] for field in fields(self) if field.name not in _APART
        }
        gaps = self.gaps_s[_ranges(self.starts[:-1][places], np.diff(self.starts)[places])]
        tokens = self.response_tokens
        begins = np.cumsum(self.responses) - self.responses
        counts = None if tokens is None else tokens[_ranges(begins[places], self.responses[places])]
        return Columns(**changed, own_gaps_s=gaps, own_counts=counts, names=self.names, errors=self.errors)

    @property
    def response_tokens(self) -> Ints | None:
        """Tokens of each response, one request after another; None: one each."""
        return self.own_counts if self.spans is None else self.spans.counts

    def token_chunks(self, *, by_response: bool = False) -> Iterator[TokenChunk]:
        """Yield every token's arrival, or every response's, about a million at a time."""
        begin = 0
        while begin < len(self):
            limit = self.starts[begin] + CHUNK_TOKENS
            end = max(begin + 1, int(np.searchsorted(self.starts, limit, side="right")) - 1)
            chunk = self._every_response if end - begin == len(self) else _responses_of(self, begin, end)
            yield chunk if by_response else _tokens_of(self, begin, chunk)
            begin = end

    @cached_property
    def _every_response(self) -> TokenChunk:
        """Every response's arrival, for columns of one chunk: a level's figures need it several times."""
        return _responses_of(self, 0, len(self))


_APART = frozenset({"own_gaps_s", "own_counts", "spans", "names", "errors"})


def _ranges(begins: Ints, lengths: Ints) -> Ints:
    """Return the indices of ranges, one after another."""
    within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(begins, lengths) + within


def _responses_of(columns: Columns, begin: int, end: int) -> TokenChunk:
    rows = np.arange(begin, end, dtype=np.int64)[columns.tokens[begin:end] > 0]
    gaps = np.diff(columns.starts)[rows]
    row = np.repeat(rows, gaps + 1)
    firsts = np.concatenate([[0], np.cumsum(gaps + 1)])[:-1]
    steps = np.zeros(len(row))
    is_gap = np.ones(len(row), dtype=bool)
    is_gap[firsts] = False
    steps[is_gap] = columns.gaps_s[columns.starts[begin] : columns.starts[end]]
    since = np.cumsum(steps)
    time_s = columns.first_s[row] + since - np.repeat(since[firsts], gaps + 1)
    return TokenChunk(row, time_s)


def _tokens_of(columns: Columns, begin: int, responses: TokenChunk) -> TokenChunk:
    """Return the tokens of some responses, the first of which is request `begin`'s."""
    tokens = columns.response_tokens
    if tokens is None:
        return responses
    before = int(columns.responses[:begin].sum())
    own = tokens[before : before + len(responses.row)]
    return TokenChunk(np.repeat(responses.row, own), np.repeat(responses.time_s, own))


def columns_of(records: Columns | Iterable[RequestRecord]) -> Columns:
    """Return records as columns; columns are returned unchanged."""
    if isinstance(records, Columns):
        return records
    builder = _Builder()
    for record in records:
        builder.add(record)
    return builder.build()


class _Builder:
    """Collects records one at a time."""

    def __init__(self) -> None:
        self._floats = {name: array("d") for name in (*_FLOATS, "first_s", "second_s", "last_s")}
        names = (*_INTS, *_MAYBE_INTS, "phase", "outcome", "tokens", "responses")
        self._ints = {name: array("q") for name in names}
        self._ints |= {"class_name": array("q"), "error": array("q")}
        self._times, self._counts = array("d"), array("q")
        self._responses = 0
        self._bundles: list[tuple[int, list[int]]] = []  # first response and tokens of each, where some have several
        self._gaps: list[Gaps] = []
        self._names: dict[str, int] = {}
        self._errors: dict[str, int] = {}
        self._phases = {phase: place for place, phase in enumerate(PHASES)}
        self._outcomes = {outcome: place for place, outcome in enumerate(OUTCOMES)}

    def add(self, record: RequestRecord) -> None:
        floats, ints, times = self._floats, self._ints, record.token_times_s
        for name in _INTS:
            ints[name].append(getattr(record, name))
        for name in _MAYBE_INTS:
            value = getattr(record, name)
            ints[name].append(UNKNOWN if value is None else value)
        floats["scheduled_s"].append(record.scheduled_s)
        floats["sent_s"].append(record.sent_s)
        floats["done_s"].append(record.done_s)
        floats["queue_s"].append(np.nan if record.queue_s is None else record.queue_s)
        ints["tokens"].append(len(times))
        if record.bundled_tokens:
            times = self._bundle(times)
        self._responses += len(times)
        ints["responses"].append(len(times))
        floats["first_s"].append(times[0] if times else np.nan)
        floats["second_s"].append(times[1] if len(times) > 1 else np.nan)
        floats["last_s"].append(times[-1] if times else np.nan)
        ints["phase"].append(self._phases[record.phase])
        ints["outcome"].append(self._outcomes[record.outcome])
        ints["class_name"].append(_place(self._names, record.class_name))
        ints["error"].append(_place(self._errors, record.error))
        self._times.extend(times)
        self._counts.append(len(times))
        if len(self._times) > CHUNK_TOKENS:
            self._take_gaps()

    def _bundle(self, times: tuple[float, ...]) -> tuple[float, ...]:
        """Return when the responses arrived of a reply in which some had several tokens: those of one time are one."""
        groups = [(time_s, sum(1 for _ in same)) for time_s, same in groupby(times)]
        self._bundles.append((self._responses, [count for _, count in groups]))
        return tuple(time_s for time_s, _ in groups)

    def _response_tokens(self) -> Ints | None:
        """Return the tokens of each response; None: one each."""
        if not self._bundles:
            return None
        counts = np.ones(self._responses, dtype=np.int64)
        for begin, own in self._bundles:
            counts[begin : begin + len(own)] = own
        return counts

    def build(self) -> Columns:
        self._take_gaps()
        floats = {name: np.frombuffer(values, dtype=np.float64) for name, values in self._floats.items()}
        ints = {name: np.frombuffer(values, dtype=np.int64) for name, values in self._ints.items()}
        gaps: Any = np.concatenate(self._gaps) if self._gaps else np.zeros(0)
        columns: dict[str, Any] = {**floats, **ints}
        counts = self._response_tokens()
        return Columns(
            **columns, own_gaps_s=gaps, own_counts=counts, names=tuple(self._names), errors=tuple(self._errors)
        )

    def _take_gaps(self) -> None:
        """Convert the arrivals collected so far into gaps."""
        if self._times:
            times = np.frombuffer(self._times, dtype=np.float64)
            ends = np.cumsum(np.frombuffer(self._counts, dtype=np.int64))
            between = np.ones(len(times) - 1, dtype=bool)
            inner = ends[(ends > 0) & (ends < len(times))]
            between[inner - 1] = False  # the step from one request's last token to the next one's first is not a gap
            self._gaps.append(np.diff(times)[between])
            if sum(len(gaps) for gaps in self._gaps) > MANY_TOKENS:
                self._gaps = [gaps.astype(np.float32, copy=False) for gaps in self._gaps]
        self._times, self._counts = array("d"), array("q")


def _place(known: dict[str, int], text: str | None) -> int:
    return UNKNOWN if text is None else known.setdefault(text, len(known))
