"""What `describe-machine` does: measure, show, write."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engines.console import command_line, progress, quoted, show, wrote
from engines.errors import CommandError, UserError
from engines.files import to_json, write_text
from engines.machine import available_cores, describe_cpu, describe_gpu, has_gpu, parse_cores, yaml_of
from engines.outputs import refuse_existing_file
from engines.spec import Accelerator, gib, is_accelerator_file, read_accelerator, resolve_model


def run(out: Path | None, force: bool, dry_run: bool, as_json: bool, **flags: Any) -> None:
    """Measure this machine and write an accelerator's file."""
    from engines.cli.describe_machine import OUT

    target = out or OUT
    if not is_accelerator_file(str(target)):
        named = target.with_suffix(".yaml") if target.name else OUT
        raise UserError(f"--out {target}: --gpu takes a .yaml file", hint=f"--out {named}")
    device = flags["device"] if flags["device"] != "auto" else "gpu" if has_gpu() else "cpu"
    cores = _cores(device, flags["cores"], flags["threads"])
    _check_vllm(device, flags["vllm"], flags["model_name"])
    if dry_run:
        show(f"would measure {'the first GPU' if device == 'gpu' else f'cores {_words(cores)}'} and write {target}")
        return
    refuse_existing_file(target, force=force, is_ours=_is_measured)
    found = _measured(device, cores, flags)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, yaml_of(found))
    if as_json:
        show(to_json(found).rstrip())
        return
    _show(found)
    wrote(target, f"predict-load --gpu {quoted(target)} --model DIR --precision fp32 --engine-profile vllm-v1")


def _is_measured(path: Path) -> bool:
    """Whether a file is one that `describe-machine` wrote: the others were written by hand."""
    try:
        return read_accelerator(path).kind == "measured"
    except CommandError:
        return False


def _check_vllm(device: str, python: Path | None, model: str | None) -> None:
    """Refuse what cannot be measured with vLLM, before anything is measured."""
    if device == "gpu" and python is not None:
        raise UserError("--vllm applies to a CPU", hint="--device cpu")
    if model is not None and python is None:
        raise UserError("--model alone changes nothing", hint="--vllm PYTHON measures with the model's matrices")
    if python is not None and not (python.is_file() and os.access(python, os.X_OK)):
        raise UserError(f"--vllm {python}: not an executable file", hint="the python of an environment with vLLM")


def _measured(device: str, cores: tuple[int, ...], flags: dict[str, Any]) -> Accelerator:
    today, command = datetime.now(tz=UTC).date(), command_line("describe-machine")
    name = flags["name"]
    if device == "gpu":
        return describe_gpu(name=name, today=today, command=command, progress=progress)
    model = None if flags["model_name"] is None else resolve_model(flags["model_name"])
    return describe_cpu(
        cores, name=name, today=today, command=command, progress=progress, vllm=flags["vllm"], model=model
    )


def _cores(device: str, requested: str | None, threads: int | None) -> tuple[int, ...]:
    """Return the cores to measure on.

    Raises:
        UserError: More threads than cores, or cores of a GPU.
    """
    if device == "gpu":
        if requested is not None or threads is not None:
            raise UserError("--cores and --threads apply to a CPU", hint="--device cpu")
        return ()
    available = available_cores()
    cores = available if requested is None else parse_cores(requested, available)
    if threads is not None and threads > len(cores):
        raise UserError(f"--threads {threads}: only {len(cores)} cores", hint="one thread a core")
    return cores[:threads]


def _show(found: Accelerator) -> None:
    from rich.table import Table

    from engines.terminal_tables import table_console

    machine = found.machine
    assert machine is not None
    show(f"{found.name}: {machine.model}, {gib(int(found.memory_bytes.value))}")
    table = Table(title="measured", title_justify="left")
    for heading in ("threads", "what", "with", "a second"):
        table.add_column(heading, justify="right" if heading in {"threads", "a second"} else "left")
    for width in machine.bandwidth:
        for name, value in width.model_dump().items():
            if name != "threads":
                words = name.removesuffix("_bytes_per_s")
                table.add_row(str(width.threads), f"memory, {words}", "numpy", f"{value / 1e9:.1f} GB")
    for point in machine.gemm:
        figure = f"{point.flops_per_s / 1e9:,.0f} Gop"
        table.add_row(str(point.threads), f"product, {point.arithmetic}", point.library, figure)
    for arithmetic, speeds in found.products.items():
        for speed in speeds:
            what = f"product of {speed.rows} rows, {arithmetic}: its weights"
            figure = f"{speed.weight_bytes_per_s / 1e9:.1f} GB"
            table.add_row(str(found.threads), what, machine.versions["products"], figure)
    table_console().print(table)


def _words(cores: tuple[int, ...]) -> str:
    return ", ".join(map(str, cores))
