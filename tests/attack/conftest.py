"""The valid inputs that attacks begin from, and the count of an attack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.files import Document, MadeBy
from engines.planning import make_plan
from engines.planning.recipe import resolve_recipe
from tests.attack.examples import make_examples
from tests.attack.hostile import make_odd_places

COUNTED: Counter[str] = Counter()


@pytest.fixture(scope="package")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with one valid example of each input; print the count of the attack in the end."""
    folder = tmp_path_factory.mktemp("attack")
    head = Document(made_by=MadeBy(command="test", version="0"))
    for precision in ("fp8", "bf16"):  # the tables of measured kernels are compiled here, not in every child again
        make_plan(resolve_recipe(None, {"precision": precision}), head=head)
    make_examples(folder)
    make_odd_places(folder / "place")
    yield folder / "place"
    print(f"\nattack: {COUNTED['cases']} cases, {COUNTED['tracebacks']} tracebacks, {COUNTED['leftovers']} leftovers")  # noqa: T201 (the figures of `make attack`)
