"""A signal does not cut a deferred block, and is not lost."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel, PlainSerializer

from engines.files import write_json
from engines.signals import interrupts_deferred


def _interrupting(value: int) -> int:
    signal.raise_signal(signal.SIGINT)
    return value


class _Document(BaseModel):
    """A document whose serializer is interrupted; pydantic hides a KeyboardInterrupt there."""

    requests: Annotated[int, PlainSerializer(_interrupting)] = 20


@pytest.fixture(autouse=True)
def _python_handlers() -> Iterator[None]:
    """Install Python's own handlers, whatever started the tests."""
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_the_block(number: signal.Signals) -> None:
    """The whole block runs, then the handler that was there before; the handlers are as before."""
    done: list[str] = []

    def block() -> None:
        signal.raise_signal(number)
        done.append("block")

    with pytest.raises(KeyboardInterrupt):
        _run_deferred(block)
    assert done == ["block"]
    assert signal.getsignal(number) is signal.default_int_handler


def test_an_error_in_the_block_gives_way_to_the_signal() -> None:
    """A command that was interrupted says so, whatever the block met afterwards."""

    def fail() -> None:
        signal.raise_signal(signal.SIGINT)
        raise ValueError

    with pytest.raises(KeyboardInterrupt):
        _run_deferred(fail)


def test_a_handler_of_another_language_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python cannot restore a handler that C code installed, and so does not replace it."""
    replaced: list[int] = []
    monkeypatch.setattr(signal, "getsignal", lambda number: None if number == signal.SIGTERM else signal.SIG_DFL)
    monkeypatch.setattr(signal, "signal", lambda number, _: replaced.append(number))
    _run_deferred(lambda: None)
    assert replaced == [signal.SIGINT, signal.SIGINT]


def test_an_interrupt_in_a_serializer_is_still_an_interrupt(tmp_path: Path) -> None:
    """The file is whole, and the command ends as interrupted, not with pydantic's error."""
    with pytest.raises(KeyboardInterrupt):
        write_json(tmp_path / "run.json", _Document())
    assert (tmp_path / "run.json").read_text() == '{\n  "requests": 20\n}\n'


def _run_deferred(block: Callable[[], None]) -> None:
    with interrupts_deferred():
        block()
