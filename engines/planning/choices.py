"""The values of a plan as they are resolved, each with its origin and reason."""

from __future__ import annotations

from typing import Literal

from engines.files import Strict
from engines.manifest import Notice
from engines.planning.recipe import ResolvedRecipe

Origin = Literal["flag", "recipe", "default", "derived"]


class Choice(Strict):
    """One resolved value with its origin and reason."""

    name: str
    value: str | int | float | bool
    origin: Origin
    reason: str


class Choices:
    """Collects resolved values and notices while a plan is made."""

    def __init__(self, resolved: ResolvedRecipe) -> None:
        self.resolved = resolved
        self.made: list[Choice] = []
        self.notices: list[Notice] = []

    def given(self, key: str, value: str | float | bool, reason: str) -> None:
        """Record a value that was given, or a default."""
        self.made.append(Choice(name=key, value=value, origin=self.resolved.origin(key), reason=reason))

    def derived(self, key: str, value: str | float | bool, reason: str) -> None:
        """Record a value that the plan derived."""
        self.made.append(Choice(name=key, value=value, origin="derived", reason=reason))

    def notice(self, code: str, text: str) -> None:
        """Record a caveat for all later figures."""
        self.notices.append(Notice(code=code, text=text))
