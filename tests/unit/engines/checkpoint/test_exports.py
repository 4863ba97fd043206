"""The names that other rooms import of checkpoints, most of them at their first use."""

from __future__ import annotations

import pytest

import engines.checkpoint


def test_every_name_is_there() -> None:
    """Each exported name is what its module defines, whether a module of that name was imported before or not."""
    found = {name: getattr(engines.checkpoint, name) for name in engines.checkpoint.__all__}
    assert all(getattr(each, "__name__", name) == name for name, each in found.items())
    with pytest.raises(AttributeError, match="nothing_of_it"):
        engines.checkpoint.nothing_of_it  # noqa: B018
