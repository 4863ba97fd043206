"""The manner all commands share: one error, one hint, a known exit status."""

from __future__ import annotations

import errno

import click
import pytest

from engines.console import Command, common_flags, progress, say, show
from engines.errors import CommandError, MissingError, TargetMissedError, ToolError, UserError


def _command(error: BaseException) -> Command:
    @click.command("do-thing", cls=Command)
    @common_flags
    def run(as_json: bool, verbose: bool) -> None:  # noqa: ARG001
        raise error

    assert isinstance(run, Command)
    return run


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UserError("asked wrongly"), 2),
        (MissingError("not here"), 1),
        (ToolError("tool failed", status=9), 1),
        (TargetMissedError("too slow"), 3),
        (KeyboardInterrupt(), 130),
        (click.UsageError("no such option"), 2),
    ],
)
def test_exit_status(error: BaseException, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Each kind of failure has its exit status and one error line on stderr."""
    with pytest.raises(SystemExit) as ended:
        _command(error).main([])
    assert ended.value.code == status
    captured = capsys.readouterr()
    assert captured.err.lstrip("\n").startswith("do-thing: error: ")
    assert captured.out == ""


def test_bug_keeps_its_traceback() -> None:
    """What is not a failure of the user's or of a tool is a bug, and is not dressed up."""
    with pytest.raises(ZeroDivisionError):
        _command(ZeroDivisionError()).main([])


@pytest.mark.parametrize("error", [OSError(28, "No space left on device", "a"), ConnectionResetError("reset")])
def test_verbose_shows_where_the_operating_system_refused(error: OSError, capsys: pytest.CaptureFixture[str]) -> None:
    """One line and its hint as ever, and with -v the code that met the error before it."""
    for flags, has_code in (([], False), (["-v"], True)):
        with pytest.raises(SystemExit) as ended:
            _command(error).main(flags)
        said = capsys.readouterr().err
        assert ended.value.code == 1
        assert (f'File "{__file__}", line ' in said) is has_code
        assert "Traceback" not in said
        *_, line = (each for each in said.splitlines() if not each.startswith("hint: "))
        assert line.startswith("do-thing: error: ")
        assert ("hint: free some space on the output's disk" in said) is (error.errno == errno.ENOSPC)


def test_a_broken_connection_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    """EPIPE from a server's socket is not a reader of stdout that left."""
    with pytest.raises(SystemExit) as ended:
        _command(BrokenPipeError(32, "Broken pipe")).main([])
    assert ended.value.code == 1
    assert capsys.readouterr().err == "do-thing: error: Broken pipe\n"


@pytest.mark.parametrize(
    "error",
    [MemoryError(), ImportError("libarrow.so.2600: failed to map segment from shared object")],
)
def test_too_little_memory_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where a compiled library finds no room, in numpy, pyarrow or matplotlib; another import error is a bug."""
    with pytest.raises(SystemExit) as ended:
        _command(error).main([])
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("do-thing: error: out of memory")
    with pytest.raises(ImportError):
        _command(ImportError("cannot import name 'x'")).main([])


@pytest.mark.parametrize(
    ("given", "said", "hint"),
    [
        (("--count", "5m"), "'5m' is not a whole number.", "do-thing --help lists every flag"),
        (("--share", "5%"), "'5%' is not a number.", "do-thing --help lists every flag"),
        (("--count", "1k"), "'1k' is not a whole number.", "write the number out: 1000"),
        (("--limit", "150ms"), "'150ms' is not a number.", "times are in seconds, without a unit: 0.15"),
        (("--gap-ms", "50ms"), "'50ms' is not a number.", "this time is in milliseconds, without a unit: 50"),
        (("--limit", "x"), "'x' is not a number.", "do-thing --help lists every flag"),
    ],
)
def test_a_wrong_flag_is_described_without_words_of_python(
    given: tuple[str, str],
    said: str,
    hint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A number is not a float range."""

    @click.command("do-thing", cls=Command)
    @click.option("--count", type=int)
    @click.option("--share", type=click.FloatRange(0, 1))
    @click.option("--limit", type=float)
    @click.option("--gap-ms", type=float)
    def command(**_: object) -> None:
        pass

    with pytest.raises(SystemExit) as ended:
        command.main(list(given))
    assert ended.value.code == 2
    error, hinted = capsys.readouterr().err.splitlines()
    assert error.endswith(f"'{given[0]}': {said}")
    assert hinted == f"hint: {hint}"


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("--users", "did you mean --concurrency? do-thing --help lists every flag"),  # another tool's name for it
        ("--concurency", "did you mean --concurrency? do-thing --help lists every flag"),
        ("--qps", "do-thing --help lists every flag"),  # this command has no --rate
        ("--master", "do-thing --help lists every flag"),
    ],
)
def test_an_unknown_flag_is_met_with_the_one_that_is_meant(
    given: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flag of another load generator or a misspelled one; what is not near is not guessed."""

    @click.command("do-thing", cls=Command)
    @click.option("--concurrency")
    @click.option("--users-file")
    def command(**_: object) -> None:
        pass

    with pytest.raises(SystemExit) as ended:
        command.main([given, "8"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"do-thing: error: no such flag {given}\nhint: {hint}\n"


def test_hint_and_tool_log_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """A failed tool's status and last lines are part of the message; the hint has its own line."""
    error: CommandError = ToolError("trtllm-build failed", status=2, last_lines=["a", "b"], hint="read the log")
    with pytest.raises(SystemExit):
        _command(error).main([])
    assert capsys.readouterr().err == (
        "do-thing: error: trtllm-build failed; exit status 2\n  | a\n  | b\nhint: read the log\n"
    )


def test_a_quoted_text_does_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """A server's or a file's words may have control characters: an error shows them."""
    with pytest.raises(SystemExit):
        _command(UserError("it said \x1b[2J\x9b\r\x07 \u00e9", hint="\x1b]0;a\x07")).main([])
    said = capsys.readouterr().err
    assert said == "do-thing: error: it said \\x1b[2J\\x9b\\r\\x07 \u00e9\nhint: \\x1b]0;a\\x07\n"


def test_a_word_without_its_flag_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """The first of several, since each is missing one."""

    @click.command("do-thing", cls=Command)
    @click.option("--count", type=int)
    def do_thing(count: int) -> None: ...

    for words in (["a.csv"], ["--count", "1", "a.csv", "b.csv"]):
        with pytest.raises(SystemExit) as ended:
            do_thing.main(words)
        assert ended.value.code == 2
        hinted = capsys.readouterr().err.splitlines()[-1]
        assert hinted == "hint: put a flag before a.csv, or omit it; do-thing --help lists every flag"


def test_a_terminal_gets_lines_broken_between_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would break them anywhere. A pipe gets each line whole, and what is shown for copying is never broken."""
    line = "the price of h100-sxm-80gb is old: " + "check it, " * 20
    monkeypatch.setenv("COLUMNS", "40")
    say(line)
    progress(line)
    assert capsys.readouterr() == (f"{line}\n", f"{line}\n")
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    say(line)
    progress(line)
    show(line)
    out, err = capsys.readouterr()
    assert out == f"{err}{line}\n"
    assert max(map(len, err.splitlines())) <= 40
    assert err.split() == line.split()
