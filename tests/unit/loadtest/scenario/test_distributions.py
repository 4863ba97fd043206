"""Lengths that vary, held to their bounds, their means and their notation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from engines.errors import MissingError, UserError
from loadtest.scenario.distributions import Distribution, even, parse
from loadtest.scenario.length_files import read_pairs
from loadtest.scenario.schema import Lengths

DRAWS = 4000


@st.composite
def distributions(draw: st.DrawFn) -> Distribution:
    """Return any distribution of the notation that needs no file, with bounds around its mean or without."""
    kind = draw(st.sampled_from(["uniform", "normal", "lognormal", "exponential"]))
    mean = draw(st.integers(20, 5000))
    if kind == "uniform":
        return parse(f"uniform({mean}, {mean + draw(st.integers(0, 3000))})")
    smallest = f", min={draw(st.integers(1, mean))}" if draw(st.booleans()) else ""
    largest = f", max={draw(st.integers(mean, 4 * mean))}" if draw(st.booleans()) else ""
    spread = {"normal": f", {draw(st.integers(0, mean))}", "lognormal": f", {draw(st.floats(0, 1.5))}"}.get(kind, "")
    return parse(f"{kind}({mean}{spread}{smallest}{largest})")


def _draws(distribution: Distribution) -> list[int]:
    return [distribution.whole(even(7, number)) for number in range(DRAWS)]


@settings(max_examples=60, deadline=None)
@given(distributions())
def test_draws_keep_bounds_and_mean(distribution: Distribution) -> None:
    """Nothing outside min and max is drawn, and what is drawn has the mean that the distribution states."""
    draws = _draws(distribution)
    bounds = dict(distribution.values)
    assert min(draws) >= max(1, math.floor(bounds.get("min", 1)))
    assert max(draws) <= bounds.get("max", math.inf)
    centre = sum(draws) / DRAWS
    spread = math.sqrt(sum((each - centre) ** 2 for each in draws) / DRAWS)
    assert centre == pytest.approx(distribution.mean, abs=5 * spread / math.sqrt(DRAWS) + 0.5)


@settings(max_examples=60, deadline=None)
@given(distributions())
def test_the_notation_means_what_was_read(distribution: Distribution) -> None:
    """What a document writes of a distribution reads back as the same one."""
    assert parse(str(distribution)) == distribution
    assert Lengths.model_validate_json(Lengths(isl=distribution, osl=3).model_dump_json()).isl == distribution


@given(st.integers(0, 2**64), st.integers(0, 10**9))
def test_even_numbers_lie_between_0_and_1(seed: int, number: int) -> None:
    """Neither end is ever drawn, and the same place gives the same number."""
    assert 0 < even(seed, number) < 1
    assert even(seed, number) == even(seed, number)


def test_even_numbers_are_even() -> None:
    """Of ten thousand, each tenth part has its share, along numbers, places and seeds alike."""
    for numbers in (
        [even(0, number) for number in range(10_000)],
        [even(0, 5, place) for place in range(10_000)],
        [even(seed, 5) for seed in range(10_000)],
    ):
        counts = [sum(low <= 10 * number < low + 1 for number in numbers) for low in range(10)]
        assert sum((count - 1000) ** 2 / 1000 for count in counts) < 27.9  # chi-square, 9 degrees, 1 in 1000


def test_whole_numbers_are_equally_likely() -> None:
    """`uniform(1, 3)` draws 1, 2 and 3 a third each, not the ends half as often."""
    draws = _draws(parse("uniform(1, 3)"))
    for value in (1, 2, 3):
        assert draws.count(value) / DRAWS == pytest.approx(1 / 3, abs=0.03)


def test_a_lognormal_has_its_mean_and_spread() -> None:
    """Without bounds, mean and coefficient of variation are those that were asked for."""
    draws = _draws(parse("lognormal(mean=1000, cv=0.5)"))
    mean = sum(draws) / DRAWS
    assert mean == pytest.approx(1000, rel=0.03)
    assert math.sqrt(sum((each - mean) ** 2 for each in draws) / DRAWS) / mean == pytest.approx(0.5, rel=0.08)


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ("normla(5, 2)", "expected a number or a distribution"),
        ("normal(5)", "needs sd"),
        ("normal(5, 2, 3)", "'3' is none of them"),
        ("normal(mean=5, mean=6, sd=1)", "takes each of"),
        ("normal(five, 2)", "mean is 'five'"),
        ("uniform(5, 2)", "min 5 is above max 2"),
        ("lognormal(mean=10, cv=1, max=5)", "lies outside"),
        ("lognormal(mean=0, cv=1)", "above 0"),
        ("empirical()", "needs a path"),
        ("0", "whole number from 1 up"),
        ("2.5", "whole number from 1 up"),
        (-3, "from 0 to 16,777,216"),
        (True, "expected a number or a distribution"),
        (None, "expected a number or a distribution"),
    ],
)
def test_what_is_no_length_is_refused(said: object, wrong: str) -> None:
    """A misspelled, incomplete or impossible length is one error that says what would be one."""
    with pytest.raises(ValidationError, match=wrong):
        Lengths.model_validate({"isl": said})


def test_empirical_lengths_are_the_files(tmp_path: Path) -> None:
    """Only values of the column are drawn, each as often as it stands there; bounds leave some out."""
    path = tmp_path / "lengths.csv"
    path.write_text("isl,osl\n10,1\n10,2\n30,3\n")
    draws = _draws(parse(f"empirical({path}, isl)"))
    assert set(draws) == {10, 30}
    assert draws.count(10) / DRAWS == pytest.approx(2 / 3, abs=0.03)
    assert set(_draws(parse(f"empirical({path}, isl, max=20)"))) == {10}
    assert parse(f"empirical({path}, osl)").longest == 3
    with pytest.raises(UserError, match="no 'nothing'"):
        parse(f"empirical({path}, nothing)").at(0.5)
    with pytest.raises(UserError, match="2 columns"):
        parse(f"empirical({path})").at(0.5)


@pytest.mark.parametrize(
    "text",
    [
        "isl,osl\n100,20\n500,7\n0,9\n",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,100,20\n2023-11-16 18:15:50,500,7\n",
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,100,20,120,API\n"
        "7,ChatGPT,500,7,507,API\n9,ChatGPT,5,0,5,API\n",
        json.dumps({"prompt_tokens": 100, "completion_tokens": 20})
        + "\n\n"
        + json.dumps({"prompt_tokens": 500, "completion_tokens": 7, "model": "x"}),
    ],
)
def test_pairs_are_read_from_what_people_have(tmp_path: Path, text: str) -> None:
    """Tables, traces and an API's usage give the same pairs; rows without prompt or reply are left out."""
    path = tmp_path / "pairs"
    path.write_text(text)
    assert read_pairs(str(path)) == ((100, 20), (500, 7))


def test_pairs_stay_together(tmp_path: Path) -> None:
    """No prompt is drawn with another row's reply; bounds leave out whole rows."""
    path = tmp_path / "pairs.csv"
    path.write_text("isl,osl\n" + "".join(f"{isl},{isl // 10}\n" for isl in range(10, 1000, 10)))
    pairs = Lengths.model_validate({"pairs": {"path": str(path), "max_isl": 500}}).pairs
    assert pairs is not None
    drawn = {pairs.at(even(0, number)) for number in range(DRAWS)}
    assert all(osl == isl // 10 for isl, osl in drawn)
    assert max(isl for isl, _ in drawn) == 500
    assert len(drawn) == 50


def test_a_file_that_holds_no_lengths_is_refused(tmp_path: Path) -> None:
    """A missing file, unknown columns and a value that is no number are named."""
    with pytest.raises(MissingError, match="no such file"):
        read_pairs(str(tmp_path / "none.csv"))
    for text, wrong in (
        ("a,b\n1,2\n", "no known length columns"),
        ("isl,osl\n1,x\n", "line 2: 'osl' is 'x'"),
        ("isl,osl\n", "no pair"),
    ):
        path = tmp_path / f"{len(text)}.csv"
        path.write_text(text)
        with pytest.raises(UserError, match=wrong):
            read_pairs(str(path))


def test_a_spread_next_to_nothing_is_none() -> None:
    """A coefficient of variation whose square a float cannot hold draws the mean."""
    assert set(_draws(parse("lognormal(100, 1e-189)"))) == {100}
