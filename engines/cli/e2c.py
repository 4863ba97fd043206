"""One command for all others: `e2c COMMAND` runs the console script COMMAND, with completion for bash and zsh.

The commands come from the installed distribution's metadata. Each is imported on first use.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import EntryPoint, distribution
from typing import Any, NoReturn

import click

from engines.console import Command
from engines.errors import DISTRIBUTION, UserError

NAME = "e2c"
HEADINGS = {"engines": "Engines", "triton_repo": "Serving on Triton", "loadtest": "Load tests and capacity"}
EPILOG = """\b
Completion for this shell; to keep it, add the line to ~/.bashrc or ~/.zshrc:
  eval "$(_E2C_COMPLETE=bash_source e2c)"
  eval "$(_E2C_COMPLETE=zsh_source e2c)"
"""


@cache
def _scripts() -> dict[str, EntryPoint]:
    """Return the distribution's other console scripts by name."""
    found = distribution(DISTRIBUTION).entry_points.select(group="console_scripts")
    return {each.name: each for each in found if each.name != NAME}


class _Umbrella(Command, click.Group):
    """A click group of the distribution's console scripts, each imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        """Return all command names: rooms in pipeline order, the commands of a room by name."""
        rooms = list(HEADINGS)
        return sorted(_scripts(), key=lambda name: (rooms.index(_room(name)), name))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Return the command with this name, or None."""
        script = _scripts().get(cmd_name)
        if script is None:
            return None
        command: click.Command = script.load().loaded()
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the first word names.

        Raises:
            UserError: There is none; the hint is the nearest name.
        """
        name = args[0]
        if name not in _scripts() and not ctx.resilient_parsing:
            close = difflib.get_close_matches(name, _scripts(), n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"{NAME} --help lists every command"
            raise UserError(f"no such command '{name}'", hint=hint)
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands under their room's heading, then the options."""
        names = self.list_commands(ctx)
        for room, heading in HEADINGS.items():
            of_room = [(name, self.get_command(ctx, name)) for name in names if _room(name) == room]
            with formatter.section(heading):
                formatter.write_dl([(name, command.get_short_help_str(200)) for name, command in of_room if command])
        super().format_options(ctx, formatter)

    def main(self, args: Sequence[str] | None = None, *more: Any, **kwargs: Any) -> NoReturn:
        """Run the named command as its own console script would. Never returns."""
        name, *rest = (sys.argv[1:] if args is None else args) or ["--help"]
        is_completing = f"_{NAME}_COMPLETE".upper() in os.environ
        command = None if is_completing else self.get_command(click.Context(self), name)
        if command is None:
            super().main([name, *rest], *more, **kwargs)
        sys.argv = [name, *rest]  # quoted in the `made_by` of documents
        command.main(rest, prog_name=f"{NAME} {name}")
        sys.exit(0)


def _room(name: str) -> str:
    return _scripts()[name].value.partition(".")[0]


@click.group(NAME, cls=_Umbrella, epilog=EPILOG, example="e2c run-load --url http://127.0.0.1:8000")
@click.version_option(None, "--version", package_name=DISTRIBUTION)
def e2c() -> None:
    """From an LLM checkpoint to a capacity plan: TensorRT-LLM engines, Triton repositories, load tests, plans.

    Each command is also installed under its own name. COMMAND --help lists its options.
    """
