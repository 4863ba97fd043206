"""Figures of simulated tokens, from iterations and spans, are those of the same tokens listed one by one."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.metrics import bootstrap
from loadtest.metrics.latency import spread, spread_of_spans
from loadtest.results import TokenSpans, Weighted

Drawn = tuple[list[float], list[list[tuple[int, int]]]]


@st.composite
def _spans(draw: st.DrawFn) -> Drawn:
    """Draw when iterations left, and for each request its spans: (first, last) iterations, apart, in order."""
    steps = draw(st.lists(st.floats(1e-4, 0.5), min_size=2, max_size=40))
    left_s = np.cumsum(steps).tolist()
    requests = []
    for _ in range(draw(st.integers(1, 8))):
        ends = sorted(draw(st.sets(st.integers(0, len(left_s) - 1), max_size=6)))
        requests.append([(first, last) for first, last in zip(ends[::2], ends[1::2], strict=False)])
    return left_s, requests


def _made(drawn: Drawn) -> TokenSpans:
    left_s, requests = drawn
    rows = [(row, first, last) for row, spans in enumerate(requests) for first, last in spans]
    row, first, last = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    return TokenSpans(np.array(left_s), row, first, last, len(requests))


def _times(drawn: Drawn) -> list[list[float]]:
    left_s, requests = drawn
    return [[left_s[place] for first, last in spans for place in range(first, last + 1)] for spans in requests]


@given(_spans())
def test_gaps_are_those_of_listed_tokens(drawn: Drawn) -> None:
    """Gaps, their number, the longest, and those above a limit are what each request's own times give."""
    spans, times = _made(drawn), _times(drawn)
    gaps = [np.diff(own) for own in times]
    assert spans.gap_counts().tolist() == [len(own) for own in gaps]
    assert spans.gaps_s().tolist() == np.concatenate(gaps).tolist()
    assert spans.longest_gap_s().tolist() == [max(own.tolist(), default=0.0) for own in gaps]
    pooled = np.sort(np.concatenate(gaps))
    weighted, middle = spans.gaps()
    ordered = weighted.sorted()
    assert np.repeat(ordered.values, ordered.weights).tolist() == pooled.tolist()
    middles = [(later + earlier) / 2 for own in times for earlier, later in pairwise(own)]
    assert np.sort(np.repeat(middle, weighted.weights)).tolist() == sorted(middles)
    for limit_s in pooled[::3].tolist():
        assert spans.gaps_passing(limit_s, or_equal=False).tolist() == [int((own > limit_s).sum()) for own in gaps]
        assert spans.gaps_passing(limit_s, or_equal=True).tolist() == [int((own >= limit_s).sum()) for own in gaps]


@given(_spans())
def test_times_are_those_of_listed_tokens(drawn: Drawn) -> None:
    """All tokens, and each request's first, second and last one, left when its own list says."""
    spans, times = _made(drawn), _times(drawn)
    found, weights = spans.times_s()
    assert np.repeat(found, weights).tolist() == sorted(time for own in times for time in own)
    first_s, second_s, last_s = spans.notable_times_s()
    for row, own in enumerate(times):
        wanted = [own[0], own[1] if len(own) > 1 else np.nan, own[-1]] if own else [np.nan] * 3
        np.testing.assert_equal([first_s[row], second_s[row], last_s[row]], wanted)


@given(_spans(), st.data())
def test_selected_requests_keep_their_tokens(drawn: Drawn, data: st.DataObject) -> None:
    """Selecting requests leaves what the others had."""
    left_s, requests = drawn
    wanted = data.draw(st.lists(st.booleans(), min_size=len(requests), max_size=len(requests)))
    kept = [spans for spans, is_wanted in zip(requests, wanted, strict=True) if is_wanted]
    selected = _made(drawn).select(np.array(wanted))
    expected = _made((left_s, kept))
    assert selected.requests == expected.requests
    for name in ("row", "first", "last"):
        assert getattr(selected, name).tolist() == getattr(expected, name).tolist()


@given(_spans())
def test_spread_of_spans_is_the_spread_of_the_gaps(drawn: Drawn) -> None:
    """Percentiles, mean and what a sample of that size supports are the same by weights as one by one."""
    spans = _made(drawn)
    by_weight, one_by_one = spread_of_spans(spans), spread(spans.gaps_s(), counts=spans.gap_counts())
    if by_weight is None or one_by_one is None:
        assert by_weight is one_by_one
        return
    assert by_weight.unsupported == one_by_one.unsupported
    assert by_weight.count == one_by_one.count
    for name in ("mean", "min", "max", *bootstrap.PERCENTILES):
        assert getattr(by_weight, name) == pytest.approx(getattr(one_by_one, name), rel=1e-9)
    assert (by_weight.sd is None) is (one_by_one.sd is None)
    assert by_weight.sd is None or by_weight.sd == pytest.approx(one_by_one.sd or 0.0, rel=1e-6, abs=1e-12)


@given(st.lists(st.tuples(st.floats(0, 1e3), st.integers(1, 5)), min_size=1, max_size=20))
def test_weighted_quantiles_are_those_of_repeated_values(pairs: list[tuple[float, int]]) -> None:
    """A value of weight 3 counts as three values."""
    weighted = Weighted(*(np.array(column) for column in zip(*pairs, strict=True))).sorted()
    listed = np.repeat(weighted.values, weighted.weights)
    shares = [0.0, 0.25, 0.5, 0.9, 0.99, 1.0]
    assert bootstrap.quantiles_of_weighted(weighted, shares) == bootstrap.quantiles_of_sorted(listed, shares)
    assert bootstrap.quantiles_of(np.flip(listed), shares) == bootstrap.quantiles_of_sorted(listed, shares)


@given(_spans(), st.randoms(use_true_random=False))
def test_several_tokens_of_an_iteration_are_one_response(drawn: Drawn, random: Random) -> None:
    """Tokens are counted and weighted by iteration; gaps are between responses, so none is zero."""
    spans, times = _made(drawn), _times(drawn)
    counts = [[random.randint(1, 5) for _ in own] for own in times]
    several = replace(spans, counts=np.array([count for own in counts for count in own], dtype=np.int64))
    assert several.token_counts().tolist() == [sum(own) for own in counts]
    assert several.gaps_s().tolist() == spans.gaps_s().tolist()
    pairs = [pair for own, many in zip(times, counts, strict=True) for pair in zip(own, many, strict=True)]
    listed = sorted(time for time, count in pairs for _ in range(count))
    values, weights = several.times_s()
    assert np.repeat(values, weights).tolist() == listed
    chosen = np.arange(len(times)) % 2 == 0
    assert several.select(chosen).token_counts().tolist() == [sum(own) for own in counts[::2]]
