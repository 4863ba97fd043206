"""Values nobody means, and files that were damaged, drawn by hypothesis."""

from __future__ import annotations

import copy
import json
import os
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import yaml
from hypothesis import strategies as st

NUMBERS = ("inf", "-inf", "nan", "1e30", "1e308", "1e9", "-1", "0", "1e-300", str(2**31), str(2**63), "9" * 400, "0x10")
WORDS = (
    "",
    " ",
    "-",
    "--",
    "x" * 5000,
    "%s%n",
    "\udcff\udcfe",
    "a,b,,",
    ",",
    "None",
    "é\u202e",
    "../..",
    "{}",
    "[",
    "=",
)
LENGTHS = (
    *("lognormal(mean=inf, cv=0.8)", "lognormal(mean=1024, cv=1e300)", "uniform(1, 1e30)", "uniform(5, 1)"),
    *("normal(1e308, 1e308)", "exponential(1e-320)", "empirical(/proc/self/mem, isl)", "empirical(loop, isl)"),
    *("empirical(trace.csv, osl)", "empirical(trace.csv)", "normal(0, 0)", "fixed(3)", "1e9"),
)
PATHS = (
    *("/proc/self/mem", "/proc/x", "/", "trace.csv/x", "loop", "loop/x", "folder", "trace.csv", "latin1", "nothing"),
    *("pipe", "/dev/null", "/dev/zero", "\udcff", "n" * 300, "~", ".", "..", "engine", "run", "checkpoint", "secret"),
)
LISTS = (
    "1,10000000",
    "10000000",
    "1,,2",
    "1;2",
    "0,1",
    "1e30",
    "fp8,fp8",
    "3:0",
    "1,2,3",
    "tiny.p95=inf",
    "traffic*=inf",
)
NAMES = ("fp8", "bf16", "int4_awq", "h100-sxm-80gb", "llama-3-8b", "quick", "latency", "chat", "random", "eagle3")
FIXED = (
    "ttft_s.p95=nan",
    "ttft_s.p95=0.5",
    "ttft_s.=1",
    "max_queue_size=-1",
    "precision=fp4",
    "osl*=1e30",
    "gpu=",
    "=1",
)
# What a path must not be: a pipe, an endless device, a folder, a loop, a file below a file, one that nobody may read.
ODD_PATHS = ("pipe", "/dev/zero", "folder", "loop", "loop/x", "trace.csv/x", "secret", "/dev/full", "socket")
# Addresses on this machine where nothing listens, and ones that no resolver is asked for: nothing leaves the machine.
URLS = (
    *(
        "",
        "http://",
        "://",
        "http:///x",
        "127.0.0.1:9",
        "http://127.0.0.1",
        "http://[::1",
        "http://[::1]:9",
        "http://a..b",
    ),
    *(f"http://127.0.0.1:{port}" for port in ("0", "9", "-1", "65536", "99999", "x", "1:2", "9" * 30, "\u0669")),
    *(f"{scheme}://127.0.0.1:9" for scheme in ("https", "grpc", "grpcs", "ftp", "HTTP", "h", "")),
    *("file:///proc/self/mem", "data:,x", "unix:pipe", "http://user:word@127.0.0.1:9", "http://127.0.0.1:9/%zz?a#b"),
    *("http://127.0.0.1:9\r\nX: y", "http://127.0.0.1:9/\0", "http://" + "x" * 64, f"http://127.0.0.1:9/{'a' * 5000}"),
    *(
        "http://0x7f.1:9",
        "http://[v1.x]:9",
        "http://[::ffff:127.0.0.1]:9",
        "http://\u00ad",
        "http://127.0.0.1 :9",
        "\udcff",
    ),
)
HOSTS = (
    "",
    " ",
    "127.0.0.1",
    "::1",
    "[::1]",
    "localhost",
    "a..b",
    "x" * 64,
    "127.0.0.1:80",
    "\0",
    "\u00ad",
    "\udcff",
    "-1",
)
ADDRESS_FLAGS = frozenset({"--bind", "--master-host", "--address"})
# Flags whose text may be a path, although it may also be a name.
PATH_FLAGS = frozenset(
    {"--calibration-text", "--tokenizer", "--scenario", "--prompts", "--recipe", "--model", "--gpu", "--draft-model"}
    | {"--step-time-calibration", "--engine-profile", "--price"}
)
SHORT_WAITS = ("0", "0.2", "0.5", "-1", "nan", "inf", "1e30", "x")  # a longer one is waited for, as it must be
TEXT = st.sampled_from((*NUMBERS, *WORDS, *PATHS, *LENGTHS, *LISTS, *NAMES, *FIXED))
COUNTS = st.sampled_from(("0", "-1", "1", "3", "65535", "65536", "70000", "1000000000", *NUMBERS, *WORDS[:3]))
RATIOS = st.sampled_from((*NUMBERS, "0.05", "1", "2.5", ""))


def make_odd_places(place: Path) -> None:
    """Put what odd paths name into a folder: a symlink loop, a pipe, bytes that are no text, a file nobody may read."""
    (place / "loop").symlink_to("loop")
    (place / "folder").mkdir()
    (place / "latin1").write_bytes(b"name: caf\xe9\n\0\0")
    (place / "secret").write_text("{}")
    (place / "secret").chmod(0)
    os.mkfifo(place / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(place / "socket"))


def argument_lists(
    command: click.Command, bases: list[list[str]], *, never: frozenset[str]
) -> st.SearchStrategy[list[str]]:
    """Return command lines: a valid beginning, and up to three options with values that may be hostile.

    Args:
        bases: Valid beginnings.
        never: Flags that would start what the attack must not start.
    """
    options = [each for each in command.params if isinstance(each, click.Option) and each.opts[-1] not in never]
    extra = _one_of(map(_option, options))
    if paths := [each for each in options if _is_path(each)]:
        extra = st.one_of(extra, extra, _one_of(_with(each, st.sampled_from(ODD_PATHS)) for each in paths))
    loose = st.lists(TEXT.filter(lambda word: not word.startswith("-")), max_size=1)
    some = st.lists(extra, min_size=1, max_size=3).map(lambda parts: [word for part in parts for word in part])
    whole = st.sampled_from((*bases * 4, []))
    return st.builds(lambda begin, extras, words: [*begin, *extras, *words], whole, some, st.one_of(st.just([]), loose))


def _option(option: click.Option) -> st.SearchStrategy[list[str]]:
    if option.is_flag or option.is_eager:
        return st.just([option.opts[-1]])
    return _with(option, _values(option))


def _with(option: click.Option, value: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
    if option.nargs > 1:
        return st.lists(value, min_size=option.nargs, max_size=option.nargs).map(
            lambda words: [option.opts[-1], *words]
        )
    return value.map(lambda word: [option.opts[-1], word])


def _one_of(strategies: Iterable[st.SearchStrategy[list[str]]]) -> st.SearchStrategy[list[str]]:
    return st.sampled_from(list(strategies)).flatmap(lambda strategy: strategy)


def _is_path(option: click.Option) -> bool:
    return isinstance(option.type, click.Path) or option.opts[-1] in PATH_FLAGS


def _values(option: click.Option) -> st.SearchStrategy[str]:
    kind, flag = option.type, option.opts[-1]
    if flag.endswith("-url") or flag in {"--url", *ADDRESS_FLAGS}:
        return st.sampled_from(HOSTS if flag in ADDRESS_FLAGS else URLS)
    if flag == "--within":
        return st.sampled_from(SHORT_WAITS)
    if isinstance(kind, click.Choice):
        return st.sampled_from((*map(str, kind.choices), "x", ""))
    if isinstance(kind, click.types.IntParamType):
        return COUNTS
    if isinstance(kind, click.types.FloatParamType):
        return RATIOS
    return st.sampled_from(PATHS) if isinstance(kind, click.Path) else TEXT


ABSURD = st.sampled_from(
    (
        None,
        True,
        0,
        -1,
        3,
        1e308,
        float("nan"),
        float("inf"),
        2**63,
        10**30,
        10**400,
        "",
        "x" * 10_000,
        [],
        {},
        [[]],
        "\0",
    )
)
Damage = Callable[[bytes], bytes]


def damaged(text: bytes, *, lines: bool = False) -> st.SearchStrategy[bytes]:
    """Return damaged forms of a file: of its bytes and, where it is JSON or YAML of plain values, of its values."""
    ways = [
        _cut(text),
        _scattered(text),
        st.sampled_from((b"", b"\0" * 64, b"[" * 100_000, b"\xff\xfe" + text, text * 2)),
    ]
    ways.append(
        st.sampled_from((b"null", b"[]", b"1e999", b'"x"', b"{}", b"{" + b'"a":{' * 2000, b"- " * 3000, b"&a [*a]"))
    )
    parsed = _parsed(text, lines=lines)
    if parsed is not None:
        changed = st.lists(st.tuples(st.integers(0, 10**6), ABSURD, st.sampled_from("rrrdak")), min_size=1, max_size=2)
        ways += [changed.map(lambda steps: _written(_changed(parsed, steps), lines=lines))] * 5
    return st.one_of(ways)


def _cut(text: bytes) -> st.SearchStrategy[bytes]:
    return st.integers(0, max(0, len(text) - 1)).map(lambda at: text[:at])


def _scattered(text: bytes) -> st.SearchStrategy[bytes]:
    """Return the text with a few bytes written over."""
    pieces = st.sampled_from(
        (b"\0", b"\xff", b"9" * 30, b"-", b"}", b'"', b"\n", b"\xff" * 8, b"nan", b"1e308", b",,", b":")
    )

    def write(changes: list[tuple[int, bytes]]) -> bytes:
        found = bytearray(text)
        for at, piece in changes:
            begin = at % max(1, len(text))
            found[begin : begin + len(piece)] = piece
        return bytes(found)

    return st.lists(st.tuples(st.integers(0, 10**6), pieces), min_size=1, max_size=3).map(write)


def _parsed(text: bytes, *, lines: bool) -> Any:
    try:
        if lines:
            return [json.loads(line) for line in text.decode().splitlines()]
        return json.loads(text) if text[:1] in (b"{", b"[") else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        return None


def _changed(value: Any, steps: list[tuple[int, Any, str]]) -> Any:
    """Return a copy with some places replaced (r), deleted (d), doubled (a) or given a new key (k)."""
    whole = [json.loads(json.dumps(value, default=str))]
    for number, drawn, how in steps:
        absurd = copy.deepcopy(drawn)  # what is drawn is shared by all cases, and the next step may change it
        places = list(_places(whole))
        holder, key = places[number % len(places)]
        if how == "r":
            holder[key] = absurd
        elif how == "d" and holder is not whole:
            del holder[key]
        elif how == "a" and isinstance(holder, list):
            holder.append(holder[key])
        elif isinstance(holder[key], dict):
            holder[key]["surprise"] = absurd
        else:
            holder[key] = [holder[key], absurd]
    return whole[0]


def _places(holder: Any) -> Any:
    for key in holder if isinstance(holder, dict) else range(len(holder)):
        yield holder, key
        if isinstance(holder[key], dict | list):
            yield from _places(holder[key])


def _written(value: Any, *, lines: bool) -> bytes:
    if lines and isinstance(value, list):
        return b"".join(json.dumps(each).encode() + b"\n" for each in value)
    return json.dumps(value).encode()
