"""Distributions of lengths and pauses: notation, and reproducible draws from uniform random numbers.

`256`, `normal(512, 64)`, `lognormal(mean=1024, cv=0.8, max=8192)`, `uniform(100, 200)`, `exponential(30)`,
`empirical(lengths.csv, isl)`. A draw is the distribution's quantile at a number between 0 and 1, which depends on a
seed and an index by `even`: request 17 has the same lengths in any order and process.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist
from typing import Annotated, Literal

from pydantic import BeforeValidator, PlainSerializer, PlainValidator

from engines.errors import UserError
from engines.files import MAX_TOKENS
from engines.units import hint_of_count
from loadtest.scenario.length_files import Pairs, read_column

_FORMS: dict[str, tuple[str, ...]] = {
    "uniform": ("min", "max"),
    "normal": ("mean", "sd"),
    "lognormal": ("mean", "cv"),
    "exponential": ("mean",),
    "empirical": ("path", "column"),
}
_BOUNDS = ("min", "max")
NO_SPREAD = 1e-9  # a smaller spread changes no integer, and its square is lost in a float
_EXAMPLES = "256, normal(512, 64), lognormal(mean=1024, cv=0.8, max=8192), uniform(100, 200), exponential(30), "
_EXAMPLES += "empirical(lengths.csv, isl)"
_CALL = re.compile(r"\s*([a-z]+)\s*\((.*)\)\s*", re.DOTALL)
_GRID = 4096  # quantiles used for a mean: accurate to about a thousandth
_MASK = (1 << 64) - 1
_WEYL = 0x9E3779B97F4A7C15


def even(seed: int, *place: int) -> float:
    """Return a number in the open interval (0, 1) that depends only on the seed and the index.

    Source:
        Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (the mixing function).

    >>> even(0, 17, 1) == even(0, 17, 1) != even(0, 17, 2)
    True
    """
    state = seed & _MASK
    for step in place:
        state = _mixed((state + _WEYL * (2 * step + 1)) & _MASK)
    return ((state >> 11) + 0.5) / (1 << 53)


def _mixed(state: int) -> int:
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)


@dataclass(frozen=True)
class Distribution:
    """The distribution of one quantity, truncated at its bounds.

    Attributes:
        kind: `fixed`, or a name of the notation.
        values: The values in parentheses, by name.
        path: For `empirical`: a CSV with a header, or JSON Lines.
        column: For `empirical`: the column.
    """

    kind: str
    values: tuple[tuple[str, float], ...]
    path: str = ""
    column: str = ""

    def at(self, even_number: float) -> float:
        """Return the quantile at a number between 0 and 1."""
        return self._quantile(even_number)

    def whole(self, even_number: float) -> int:
        """Return the quantile as a count, at least 1; for `uniform`, every count from min to max is equally likely."""
        if self.kind == "uniform":
            low, high = self._of("min", 1), self._of("max", 1)
            return max(1, min(round(high), math.floor(low + even_number * (high - low + 1))))
        return max(1, round(self._quantile(even_number)))

    @property
    def is_fixed(self) -> bool:
        """Whether every draw is equal."""
        return self.kind == "fixed"

    @cached_property
    def mean(self) -> float:
        """The mean of draws, with bounds applied."""
        return math.fsum(self._quantile((place + 0.5) / _GRID) for place in range(_GRID)) / _GRID

    @property
    def longest(self) -> int | None:
        """The largest possible count; None without a bound."""
        if self.kind == "empirical":
            return self.whole(1.0)
        value = self._of("value", self._of("max", math.inf))
        return None if math.isinf(value) else max(1, round(value))

    def moved(self, move: Callable[[str], str]) -> Distribution:
        """Return the distribution with its file's path changed."""
        return replace(self, path=move(self.path)) if self.path else self

    def __str__(self) -> str:
        """Return the notation of this distribution."""
        if self.kind == "fixed":
            return _written(self.values[0][1])
        words = [word for word in (self.path, self.column) if word]
        return f"{self.kind}({', '.join(words + [f'{name}={_written(value)}' for name, value in self.values])})"

    def _of(self, name: str, default: float) -> float:
        return dict(self.values).get(name, default)

    @cached_property
    def _quantile(self) -> Callable[[float], float]:
        low, high = self._of("min", -math.inf), self._of("max", math.inf)
        match self.kind:
            case "fixed":
                value = self.values[0][1]
                return lambda _: value
            case "uniform":
                return lambda even_number: low + even_number * (high - low)
            case "normal":
                return _normal(self._of("mean", 0), self._of("sd", 0), max(low, 0.0), high)
            case "lognormal":
                return _lognormal(self._of("mean", 0), self._of("cv", 0), low, high)
            case "exponential":
                return _exponential(self._of("mean", 0), max(low, 0.0), high)
            case _:
                return _of_sample(read_column(self.path, self.column), low, high, self.path)


def fixed(value: float) -> Distribution:
    """Return the distribution with only this value."""
    return Distribution("fixed", (("value", value),))


def parse(written: object) -> Distribution:
    """Return the distribution of a number or a text in the notation.

    Raises:
        ValueError: It is invalid; the message states the notation.

    >>> str(parse("normal(512, 64)"))
    'normal(mean=512, sd=64)'
    >>> parse("uniform(1, 3)").mean
    2.0
    """
    if isinstance(written, Distribution):
        return written
    number = _number(written)
    if number is not None:
        return fixed(number)
    found = _CALL.fullmatch(written) if isinstance(written, str) else None
    if found is None or found[1] not in _FORMS:
        hint = hint_of_count(written) if isinstance(written, str) else None
        raise ValueError(hint or f"expected a number or a distribution, such as {_EXAMPLES}")
    return _checked(found[1], _arguments(found[1], found[2]))


def _number(written: object) -> float | None:
    if isinstance(written, bool) or not isinstance(written, int | float | str):
        return None
    try:
        number = float(written)
    except ValueError:
        return None
    except OverflowError:  # a whole number of more than 308 digits
        number = math.inf
    if not 0 <= number <= MAX_TOKENS:  # of a pause: half a year in seconds
        raise ValueError(f"a number from 0 to {MAX_TOKENS:,} is expected")
    return number


def _arguments(kind: str, text: str) -> dict[str, str]:
    """Return the arguments by name; unnamed ones in order."""
    found: dict[str, str] = {}
    order = iter(_FORMS[kind])
    for part in (part.strip() for part in text.split(",")):
        name, is_named, value = part.partition("=")
        name = name.strip() if is_named else next(order, "")
        if not name or name in found or name not in (*_FORMS[kind], *_BOUNDS):
            known = ", ".join(dict.fromkeys((*_FORMS[kind], *_BOUNDS)))
            raise ValueError(f"{kind}(...) takes each of {known} once; '{part}' is none of them")
        found[name] = (value if is_named else part).strip()
    return found


def _checked(kind: str, arguments: dict[str, str]) -> Distribution:
    path, column = arguments.pop("path", ""), arguments.pop("column", "")
    missing = [name for name in _FORMS[kind] if name not in arguments and name not in ("path", "column")]
    if missing or (kind == "empirical" and not path):
        raise ValueError(f"{kind}(...) needs {', '.join(missing) or 'a path'}; examples: {_EXAMPLES}")
    values = {name: _number(text) for name, text in arguments.items()}
    wrong = next((name for name, value in values.items() if value is None), None)
    if wrong:
        raise ValueError(f"{kind}(...): {wrong} is '{arguments[wrong]}', a number is expected")
    numbers = {name: float(value or 0.0) for name, value in values.items()}
    if numbers.get("min", 0.0) > numbers.get("max", math.inf):
        raise ValueError(f"{kind}(...): min {numbers['min']:g} is above max {numbers['max']:g}")
    if kind in ("lognormal", "exponential") and not numbers["mean"] > 0:
        raise ValueError(f"{kind}(...): the mean must be above 0")
    if not numbers.get("min", 0.0) <= numbers.get("mean", numbers.get("min", 0.0)) <= numbers.get("max", math.inf):
        raise ValueError(f"{kind}(...): the mean {numbers['mean']:g} lies outside min and max")
    return Distribution(kind, tuple(numbers.items()), path, column)


def _normal(mean: float, sd: float, low: float, high: float) -> Callable[[float], float]:
    if sd < NO_SPREAD:
        return lambda _: mean
    known = NormalDist(mean, sd)
    below, upto = known.cdf(low), (1.0 if math.isinf(high) else known.cdf(high))
    return lambda even_number: _within(known.inv_cdf(_open(below + even_number * (upto - below))), low, high)


def _lognormal(mean: float, cv: float, low: float, high: float) -> Callable[[float], float]:
    if cv < NO_SPREAD:
        return lambda _: mean
    spread = math.sqrt(math.log1p(cv * cv))
    known = NormalDist(math.log(mean) - spread * spread / 2, spread)
    below = known.cdf(math.log(low)) if low > 0 else 0.0
    upto = 1.0 if math.isinf(high) else known.cdf(math.log(high))
    return lambda even_number: _within(math.exp(known.inv_cdf(_open(below + even_number * (upto - below)))), low, high)


def _exponential(mean: float, low: float, high: float) -> Callable[[float], float]:
    below, upto = -math.expm1(-low / mean), (1.0 if math.isinf(high) else -math.expm1(-high / mean))
    return lambda even_number: _within(
        -mean * math.log1p(-min(below + even_number * (upto - below), 1 - 1e-16)), low, high
    )


def _of_sample(values: Sequence[float], low: float, high: float, path: str) -> Callable[[float], float]:
    kept = [value for value in values if low <= value <= high]
    if not kept:
        raise UserError(f"{path}: no value from {low:g} to {high:g}", hint="widen min and max")
    return lambda even_number: kept[min(len(kept) - 1, int(even_number * len(kept)))]


def _open(probability: float) -> float:
    return min(max(probability, 1e-15), 1 - 1e-15)


def _within(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _written(value: float) -> str:
    return repr(value).removesuffix(".0")


def _as_written(distribution: Distribution) -> int | float | str:
    """Return a distribution's form in a document: a number if it is one."""
    if not distribution.is_fixed:
        return str(distribution)
    value = distribution.values[0][1]
    return int(value) if value.is_integer() else value


def _tokens(written: object) -> Distribution:
    found = parse(written)
    longest = found.values[0][1] if found.is_fixed else None
    if longest is not None and (longest < 1 or not longest.is_integer()):
        raise ValueError("a whole number from 1 up is expected")
    return found


def _pairs(written: object) -> object:
    return {"path": written} if isinstance(written, str) else written


def _tokens_or_auto(written: object) -> Distribution | str:
    return "auto" if written == "auto" else _tokens(written)


TokensOrAuto = Annotated[
    Distribution | Literal["auto"],
    PlainValidator(_tokens_or_auto),
    PlainSerializer(lambda value: value if isinstance(value, str) else _as_written(value)),
]
"""A number of tokens, at least 1, possibly varying; or that of the prompts themselves."""
Pause = Annotated[Distribution, PlainValidator(parse), PlainSerializer(_as_written)]
"""Seconds, at least 0, possibly varying."""
PairsOf = Annotated[Pairs, BeforeValidator(_pairs)]
