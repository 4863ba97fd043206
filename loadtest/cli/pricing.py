"""The price of a server's GPUs, from a command's flags."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engines.console import progress
from engines.errors import UserError
from loadtest.metrics import GpuPrice, Summary, with_cost


def pricing_of(flags: dict[str, Any]) -> Callable[[Summary], Summary]:
    """Return what adds the cost of tokens to a summary: nothing, without a price.

    Raises:
        UserError: Two prices are given, a list price lacks its GPU, or the number of GPUs is unknown.
    """
    engine_dir = flags["engine_dir"]
    if flags["gpu_price"] is None and flags["vendor"] is None:
        for flag in ("prices", "gpu", "gpus", "engine_dir"):
            if flags[flag] is not None:
                name = flag.removesuffix("_dir")
                raise UserError(f"--{name} needs a price", hint="add --gpu-price USD, or --vendor NAME")
        return lambda summary: summary
    from engines.manifest import read_manifest  # with the simulation: 0.1 s, which a report without a price saves
    from engines.steptime import step_time_for
    from loadtest.simulate import with_power_range

    manifest = None if engine_dir is None else read_manifest(engine_dir)
    per_replica = 1 if manifest is None else manifest.parallel.tensor
    gpus = flags["gpus"] or (None if manifest is None else per_replica)
    if gpus is None:
        raise UserError("the number of the server's GPUs is not known", hint="--gpus N, or --engine ENGINE_DIR")
    if gpus % per_replica:
        raise UserError(f"--gpus {gpus}: the engine runs on {per_replica} GPUs", hint="give a multiple of that")
    usd_per_h, source = _price(flags, None if manifest is None else manifest.gpu.name)
    price = GpuPrice(usd_per_h, gpus, source)
    step_time = None if manifest is None else step_time_for(manifest)

    def priced(summary: Summary) -> Summary:
        found = with_cost(summary, price, step_time, gpus_per_replica=per_replica)
        if found.kind == "predicted" and manifest is not None:
            return with_power_range(found, manifest)
        return found

    return priced


def _price(flags: dict[str, Any], engine_gpu: str | None) -> tuple[float, str]:
    """Return the price of a GPU hour, and its source with its age."""
    if flags["gpu_price"] is not None:
        if flags["vendor"] is not None or flags["prices"] is not None:
            raise UserError("--gpu-price and a list price exclude each other", hint="omit --vendor and --prices")
        return flags["gpu_price"], f"{flags['gpu_price']:g} USD per GPU hour: --gpu-price"
    gpu = flags["gpu"] or engine_gpu
    if gpu is None:
        raise UserError("the list price needs a GPU", hint="--gpu NAME, or --engine ENGINE_DIR")
    from engines.spec import resolve_gpu
    from loadtest.capacity.inputs import PriceChoices, old_prices, prices_for  # imports the planner: 0.3 s

    today = datetime.now(tz=UTC).date()
    file = None if flags["prices"] is None else str(flags["prices"])
    choices = PriceChoices(vendor=flags["vendor"], terms=flags["terms"], file=file)
    found = prices_for(choices, Path(), today=today).get(resolve_gpu(gpu).name)
    if found is None:
        raise UserError(f"{flags['vendor']} has no {flags['terms']} price of {gpu}", hint="--gpu-price USD")
    for warning in old_prices([found], today):
        progress(f"warning: {warning}")
    return found.usd_per_gpu_h, f"{found.words} ({found.age_days(today)} days ago)"
