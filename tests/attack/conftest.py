"""The valid inputs that attacks begin from, and the count of an attack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attack.examples import make_examples
from tests.attack.hostile import make_odd_places
from tests.attack.victim import Victims

COUNTED: Counter[str] = Counter()


@pytest.fixture(scope="package")
def victims() -> Iterator[Victims]:
    """Start the process that forks commands."""
    with Victims() as process:
        yield process


@pytest.fixture(scope="package")
def examples(victims: Victims, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with one valid example of each input; print the count of the attack in the end."""
    folder = tmp_path_factory.mktemp("attack")
    make_examples(folder, victims)
    make_odd_places(folder / "place")
    yield folder / "place"
    print(f"\nattack: {COUNTED['cases']} cases, {COUNTED['tracebacks']} tracebacks, {COUNTED['leftovers']} leftovers")  # noqa: T201 (the figures of `make attack`)
