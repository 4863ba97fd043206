"""What all commands share: flags, error output, progress on stderr, the closing `next:` line."""

from __future__ import annotations

import errno
import os
import re
import select
import shlex
import shutil
import signal
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

import click
from click.core import ParameterSource

from engines.errors import DISTRIBUTION, CommandError
from engines.start import INTERRUPTED
from engines.units import hint_of_count, hint_of_time

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

HELP_COLUMNS = 110
LAST_GROUPS = {
    "Output": ("--out", "--force", "--dry-run"),
    "General": ("--json", "--verbose", "--version", "--help"),
}
# Upper limit of every numeric flag: no count, and no number of seconds, tokens or requests, is larger.
LARGEST_NUMBER = 10**12
DATA_VARIABLE = "EVALUATION_DATA"  # environment variable of the folder of data sets
OPENAI_KEY = "OPENAI_API_KEY"  # environment variable of an OpenAI server's key, unless another is named
PORT = click.IntRange(1, 65_535)
SECONDS = click.FloatRange(min=0, max=1e7)  # 116 days
READER_LEFT = 128 + signal.SIGPIPE  # what shells report of a program that SIGPIPE ended
_TO_COPY = " && "  # in a line with several commands
_AGAIN_AFTER_S = 0.05
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # except tab and newline: an error quotes a log's last lines
_NO_NUMBER = re.compile(r"is not a valid (integer|float)(?: range)?\.")  # click's words
_STRAY = re.compile(r"unexpected extra arguments? \((\S+)[ )]")  # likewise
_NOT_A_NUMBER = re.compile(r"'([^']*)' is not a valid (integer|float)")  # likewise
_NEAR = 0.75  # similarity of flags worth suggesting; click's 0.6 takes --users for --master
# Flags of vllm bench, genai-perf, AIPerf and others, and what they are called here.
_CALLED_ELSEWHERE = {
    **dict.fromkeys(("users", "num-users", "max-concurrency", "parallel", "clients", "vus"), "--concurrency"),
    **dict.fromkeys(("qps", "rps", "request-rate", "request-rate-per-s", "arrival-rate"), "--rate"),
    **dict.fromkeys(("num-prompts", "num-requests", "request-count", "max-requests", "iterations"), "--requests"),
    **dict.fromkeys(("input-len", "random-input-len", "input-tokens", "prompt-tokens", "isl-mean"), "--isl"),
    **dict.fromkeys(("output-len", "random-output-len", "output-tokens", "max-tokens", "osl-mean"), "--osl"),
    **dict.fromkeys(("base-url", "endpoint", "server", "host"), "--url"),
    "port": "--http-port",
    **dict.fromkeys(("backend", "endpoint-type", "api"), "--protocol"),
    **dict.fromkeys(("dataset", "dataset-path", "input-file"), "--prompts"),
    **dict.fromkeys(("quantization", "dtype", "quant"), "--precision"),
    **dict.fromkeys(("tensor-parallel-size", "tp-size"), "--tp"),
    **dict.fromkeys(("slo", "goodput"), "--objective"),
    **dict.fromkeys(("output", "output-dir", "result-dir", "output-folder"), "--out"),
    **dict.fromkeys(("overwrite", "yes"), "--force"),
}
_WORDS = {"integer": "whole number", "float": "number"}
_LOADERS_WORDS = ("failed to map segment", "cannot allocate memory", "Cannot allocate memory")  # glibc's
_ERRNO = re.compile(r"\[Errno (\d+)\] ")

_FunctionT = TypeVar("_FunctionT", bound=Callable[..., Any])


class Command(click.Command):
    """A click command with this project's error output and exit statuses.

    Args:
        groups: Headings of --help and the flags under each, main ones first. Flags without a group follow, then the
            flags that all commands have.
        example: A command line to end --help with.
    """

    def __init__(
        self, *args: Any, groups: dict[str, tuple[str, ...]] | None = None, example: str = "", **kwargs: Any
    ) -> None:
        kwargs.setdefault("context_settings", {"max_content_width": HELP_COLUMNS})
        super().__init__(*args, **kwargs)
        self.groups = groups or {}
        self.example = example

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the flags under their headings."""
        options = [each for each in self.get_params(ctx) if isinstance(each, click.Option)]
        records = {each.opts[-1]: each.get_help_record(ctx) for each in options}
        groups = {**LAST_GROUPS, **self.groups}
        grouped = {flag for flags in groups.values() for flag in flags}
        groups["Options"] = tuple(flag for flag in records if flag not in grouped)
        for heading in dict.fromkeys((*self.groups, "Options", *LAST_GROUPS)):
            shown = [record for flag in groups[heading] if (record := records.pop(flag, None)) is not None]
            if shown:
                with formatter.section(heading):
                    formatter.write_dl(shown)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the epilog, and the example on its own line."""
        super().format_epilog(ctx, formatter)
        if self.example:
            formatter.write_paragraph()
            formatter.write(f"Example: {self.example}\n")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line; for every flag, refuse words that are not UTF-8 and numbers above the limit."""
        for word in args:
            if not _is_text(word):
                raise click.UsageError(f"{word!r}: not UTF-8 text")
        rest = super().parse_args(ctx, args)
        for parameter in self.get_params(ctx):
            values = ctx.params.get(parameter.name or "")
            for value in values if isinstance(values, tuple) else (values,):
                if isinstance(value, int | float) and not abs(value) <= LARGEST_NUMBER:
                    raise click.BadParameter(
                        f"{value} is not a number from {-LARGEST_NUMBER:g} to {LARGEST_NUMBER:g}", ctx, parameter
                    )
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command's function; with -v, a failure of the operating system shows the code that met it."""
        try:
            with _broken_pipes(READER_LEFT):
                return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _InterruptedError(str(error)) from error
        except OSError as error:
            if ctx.params.get("verbose"):
                progress("".join(traceback.format_tb(error.__traceback__)).rstrip())
            raise

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the command line; --help and --version print here."""
        with _broken_pipes(0):
            return super().make_context(*args, **kwargs)

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run the command. Never returns.

        SIGINT and SIGTERM raise an exception, so that everything the command started is stopped on the way out.
        """
        kwargs["standalone_mode"] = False
        try:
            with _unwinding_signals() as seen:
                self._main(seen, *args, **kwargs)
        except KeyboardInterrupt as error:  # while the handlers were installed or removed
            self._end_interrupted(error)

    def _main(self, seen: list[int], *args: Any, **kwargs: Any) -> NoReturn:
        try:
            super().main(*args, **kwargs)
        except CommandError as error:
            fail(self.name or "command", error.message, error.hint)
            sys.exit(error.exit_status)
        except click.UsageError as error:
            fail(self.name or "command", _usage_text(error), _usage_hint(error, self.name or "command"))
            sys.exit(2)
        except click.ClickException as error:
            fail(self.name or "command", error.format_message(), None)
            sys.exit(1)
        except (_InterruptedError, KeyboardInterrupt, click.Abort) as error:
            self._end_interrupted(error)
        except OSError as error:
            fail(self.name or "command", os_error_text(error), _hint_of(error))
            sys.exit(INTERRUPTED if seen else 1)
        except Exception as error:
            if seen:  # an import interrupted by a signal raises an error of its own
                fail(self.name or "command", "interrupted", None)
                sys.exit(INTERRUPTED)
            if not _is_out_of_memory(error):
                raise
            fail(self.name or "command", f"out of memory{_limit_text()}", "free some memory, or try a smaller input")
            sys.exit(1)
        sys.exit(0)

    def _end_interrupted(self, error: BaseException) -> NoReturn:
        fail(self.name or "command", str(error) or "interrupted", None)
        sys.exit(INTERRUPTED)


def given_flags() -> set[str]:
    """Return the flags on the command line of the running command."""
    context = click.get_current_context()
    return {
        parameter.opts[-1]
        for parameter in context.command.params
        if isinstance(parameter, click.Option)
        and parameter.name is not None
        and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    }


def _usage_text(error: click.UsageError) -> str:
    """Return click's message, with the words of arithmetic in place of Python's, and without its guesses at a flag."""
    if isinstance(error, click.NoSuchOption):
        return f"no such flag {error.option_name}"
    return _NO_NUMBER.sub(lambda found: f"is not a {_WORDS[found[1]]}.", error.format_message())


def _usage_hint(error: click.UsageError, command: str) -> str:
    """Return what to try: a flag before a stray word, a flag of a near name, a plain number, or --help."""
    if found := _STRAY.search(error.format_message()):
        return f"put a flag before {found[1]}, or omit it; {command} --help lists every flag"
    if isinstance(error, click.NoSuchOption) and (near := _near_flags(error)):
        return f"did you mean {' or '.join(near)}? {command} --help lists every flag"
    if found := _NOT_A_NUMBER.search(error.format_message()):
        hint = hint_of_count(found[1])
        if found[2] == "float":
            hint = hint or hint_of_time(found[1], in_ms=_is_in_ms(error))
        return hint or f"{command} --help lists every flag"
    return f"{command} --help lists every flag"


def _is_in_ms(error: click.UsageError) -> bool:
    """Whether an error is about a flag in milliseconds, such as --itl-ms."""
    parameter = error.param if isinstance(error, click.BadParameter) else None
    return parameter is not None and any(name.endswith("-ms") for name in parameter.opts)


def _near_flags(error: click.NoSuchOption) -> list[str]:
    """Return the command's flags that other load generators call so, or whose names are near."""
    flags = [] if error.ctx is None else [each for one in error.ctx.command.params for each in one.opts]
    given = error.option_name.lower()
    called = _CALLED_ELSEWHERE.get(given.lstrip("-"))
    if called in flags:
        return [called]
    import difflib

    return difflib.get_close_matches(given, [each for each in flags if each.startswith("--")], n=2, cutoff=_NEAR)


class _InterruptedError(BaseException):
    """A KeyboardInterrupt that click does not catch; click would print an empty line and drop the message."""


class TerminatedError(KeyboardInterrupt):
    """This process received SIGTERM."""


@contextmanager
def _unwinding_signals() -> Iterator[list[int]]:
    """Make SIGINT and SIGTERM raise an exception within the block; yield the list of signals received.

    Outside the main thread, Python cannot install handlers; the block then runs without them.
    """
    seen: list[int] = []

    def note(number: int, frame: object) -> NoReturn:  # noqa: ARG001 (a signal handler's signature)
        seen.append(number)
        if number == signal.SIGTERM:
            raise TerminatedError("terminated by the system")
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield seen
        return

    def note_again(number: int, frame: object) -> NoReturn:  # noqa: ARG001
        note(seen[-1] if seen else signal.SIGINT, None)

    def take_unraisable(found: sys.UnraisableHookArgs) -> None:
        """Raise a signal again if Python dropped its exception: in a destructor, or in a callback of an import."""
        if issubclass(found.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_AFTER_S)
        else:
            hook(found)

    hook, sys.unraisablehook = sys.unraisablehook, take_unraisable
    handlers = {signal.SIGINT: note, signal.SIGTERM: note, signal.SIGALRM: note_again}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield seen
    finally:
        sys.unraisablehook = hook
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def os_error_text(error: OSError) -> str:
    """Return the operating system's reason and the file concerned, as one line.

    >>> os_error_text(OSError(28, "No space left on device", "/a"))
    '/a: No space left on device'
    >>> os_error_text(OSError([("/a", "/b", "[Errno 28] No space left on device: '/a' -> '/b'")]))
    '/b: No space left on device'
    >>> os_error_text(OSError(28, "No space left on device", "/a", None, "/b"))
    '/b: No space left on device'
    """
    if error.args and isinstance(error.args[0], list):  # shutil.Error: of the files that were not copied, the first
        _, target, why = error.args[0][0]
        return f"{target}: {_ERRNO.sub('', str(why)).partition(': ')[0]}"
    text = error.strerror or str(error) or type(error).__name__
    is_of_the_target = error.errno in _NO_ROOM and error.filename2 is not None  # of a copy
    place = error.filename2 if is_of_the_target else error.filename
    return text if place is None else f"{place}: {text}"


_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# What to try after an error of the operating system.
_OS_ERROR_HINTS = {
    errno.EACCES: "check the owner and the permissions of the path, or choose another",
    errno.EPERM: "check the owner and the permissions of the path, or choose another",
    errno.EROFS: "choose a path on a file system that can be written",
    errno.ENOSPC: "free some space on the output's disk, or choose a path on another",
    errno.EDQUOT: "free some space on the output's disk, or choose a path on another",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), or choose a path on another disk",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "raise the limit on open files (ulimit -n)",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "check the spelling, and the folder that the command runs in",
    errno.ENOTDIR: "one part of the path is a file: check the path",
    errno.EISDIR: "a file is expected: check the path",
    errno.ELOOP: "the path is a circle of symbolic links: check the path",
    errno.EADDRINUSE: "stop the program that uses the port, or choose another",
    errno.ECONNREFUSED: "check that the server runs, and its address and port",
}


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory was refused: to Python, or to the system's loader for a compiled library."""
    return isinstance(error, MemoryError) or (
        isinstance(error, ImportError) and any(words in str(error) for words in _LOADERS_WORDS)
    )


def _limit_text() -> str:
    """Return the limit of the process's address space, to follow a message; empty without one."""
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return "" if limit == resource.RLIM_INFINITY else f": the limit is {limit / 1e6:.0f} MB (ulimit -v)"


def _hint_of(error: OSError) -> str | None:
    """Return what to try after an error of the operating system; None if it has no usual remedy."""
    number = error.errno
    if number is None and (stated := _ERRNO.search(str(error))):
        number = int(stated[1])
    return _OS_ERROR_HINTS.get(number or 0)


@contextmanager
def _broken_pipes(status: int) -> Iterator[None]:
    """End in silence when the reader has left, as in `command | head -1`; else name the failure.

    A command may have been at work, so its status is not 0. click would end without a word and with status 1, for a
    connection to a server too.
    """
    try:
        yield
    except BrokenPipeError as error:
        if not _reader_is_gone():
            raise click.ClickException(os_error_text(error)) from error
        nothing = os.open(os.devnull, os.O_WRONLY)
        for number in (1, 2):  # what is still buffered must not fail again when Python exits
            os.dup2(nothing, number)
        sys.exit(status)


def _reader_is_gone() -> bool:
    """Whether stdout or stderr is a pipe that nobody reads any more. A broken connection to a server is not."""
    poll = select.poll()
    for number in (1, 2):
        poll.register(number, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _is_text(word: str) -> bool:
    """Whether a command-line word is valid UTF-8; Python represents invalid bytes as lone surrogates."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def fail(command: str, message: str, hint: str | None) -> None:
    """Print an error and its hint to stderr, with control characters of what they quote escaped."""
    progress(f"{command}: error: {_escaped(message)}")
    if hint:
        progress(f"hint: {_escaped(hint)}")


def _escaped(text: str) -> str:
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def progress(text: str) -> None:
    """Print a line of progress to stderr."""
    print(_broken(text, sys.stderr), file=sys.stderr, flush=True)


def _broken(text: str, stream: TextIO) -> str:
    """Return text whose long lines are broken between words if a terminal shows it, which would break them anywhere."""
    if not stream.isatty():
        return text
    columns = shutil.get_terminal_size().columns
    lines = text.split("\n")
    return "\n".join(_within(line, columns) if len(line) > columns and _TO_COPY not in line else line for line in lines)


def _within(line: str, columns: int) -> str:
    """Return a line broken between words, its later parts indented.

    >>> print(_within("  fix: a-long-word, and another", 20))
      fix: a-long-word,
        and another
    """
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    broken = textwrap.wrap(
        line,
        columns,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
    )
    return "\n".join(broken)


def time_left_text(done: int, total: int, elapsed_s: float) -> str:
    """Return the estimated time left, formatted to follow a count; empty before the first item and after the last.

    >>> time_left_text(10, 40, 6.0), time_left_text(0, 40, 0.0), time_left_text(40, 40, 24.0)
    (', about 18 s left', '', '')
    """
    if not 0 < done < total:
        return ""
    return f", about {elapsed_s * (total - done) / done:.0f} s left"


def show(text: str) -> None:
    """Print results to stdout unchanged: a document, or a line to copy."""
    print(text, flush=True)


def say(text: str) -> None:
    """Print a line of results to stdout, on a terminal broken between words."""
    show(_broken(text, sys.stdout))


def wrote(path: Path, next_command: str | None = None) -> None:
    """Print what the command wrote and the command that usually comes next."""
    show(f"wrote {path}")
    if next_command:
        show(f"next: {next_command}")


def quoted(path: Path) -> str:
    """Return a path as a shell reads it, for `next:` lines.

    >>> quoted(Path("a b")), quoted(Path("run"))
    ("'a b'", 'run')
    """
    return shlex.quote(str(path))


def command_line(name: str) -> str:
    """Return the command line as typed, for the `made_by` of documents."""
    return " ".join([name, *sys.argv[1:]])


def completing(names: Callable[[], Iterable[str]]) -> Callable[..., list[CompletionItem]]:
    """Return an option's `shell_complete` that offers names, also after a comma; files where no name fits."""

    def offer(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        before, comma, begun = incomplete.rpartition(",")
        found = [CompletionItem(f"{before}{comma}{name}") for name in names() if name.startswith(begun)]
        return found or [CompletionItem(incomplete, type="file")]

    return offer


def common_flags(function: _FunctionT) -> _FunctionT:
    """Add the flags all commands have: --json, -v, --version."""
    function = click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")(
        function
    )
    function = click.option("-v", "--verbose", is_flag=True, help="Print more details to stderr.")(function)
    return click.version_option(None, "--version", package_name=DISTRIBUTION)(function)


def draft_flags(function: _FunctionT) -> _FunctionT:
    """Add the flags of speculative decoding's drafts: --max-draft-len, --max-total-draft-tokens, --acceptance."""
    function = click.option(
        "--acceptance",
        metavar="RATE,...",
        help=("Share of steps that accept the draft token at each position.  [default: the method's, if known]"),
    )(function)
    function = click.option(
        "--max-total-draft-tokens",
        type=int,
        help="Draft tokens verified per step, for a draft tree.  [default: a chain of --max-draft-len]",
    )(function)
    return click.option("--max-draft-len", type=int, help="Maximum number of draft tokens accepted per step.")(function)


PROFILE_HELP = "Engine profile, the expected overhead above the kernels: trtllm-1.x-triton, trtllm-serve, vllm, ..."


def profile_flag(text: str) -> Callable[[_FunctionT], _FunctionT]:
    """Return what adds the flag of an engine profile: --engine-profile."""
    from engines.names import engine_profile_names

    return click.option("--engine-profile", shell_complete=completing(engine_profile_names), metavar="NAME", help=text)


def writing_flags(function: _FunctionT) -> _FunctionT:
    """Add the flags of commands that write output: --out, --force, --dry-run."""
    function = click.option(
        "--out", type=click.Path(path_type=Path), default=None, help="Output path. See the default below."
    )(function)
    function = click.option("--force", is_flag=True, help="Replace an existing output.")(function)
    return click.option("--dry-run", is_flag=True, help="Print the resolved plan; write nothing.")(function)
