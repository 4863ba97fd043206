"""The emulated GPUs' energy counter on the wall clock, against the prediction's on the virtual one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engines.emulator import Batcher, BatcherSettings, Request
from engines.files import Document, MadeBy
from engines.planning import emulated_manifest, make_plan, resolve_recipe
from engines.steptime import power_model_for, step_time_for
from loadtest.simulate.energy import EnergyMeter
from triton_repo.models.engine_energy import EnergyCounter

SCALE = 2.0


def test_both_clocks_count_the_same_joules() -> None:
    """Twenty steps with a pause among them, at a time scale of 2: what the virtual clock's meter says of the same."""
    asked = resolve_recipe(None, {})
    plan = make_plan(asked, head=Document(made_by=MadeBy(command="test", version="0")))
    manifest = emulated_manifest(plan, asked.recipe)
    power = power_model_for(manifest)
    assert power is not None
    settings = BatcherSettings(max_batch_size=4, max_num_tokens=512, max_seq_len=512, tokens_per_block=32, kv_blocks=64)
    batcher = Batcher(settings, step_time_for(manifest))
    counter, meter = EnergyCounter(power, SCALE, 0.0), EnergyMeter(power)
    for number in range(3):
        batcher.submit(Request(number, 100, 20), 0.0)
    now_s, readings = 0.0, []
    while (iteration := batcher.begin(now_s)) is not None:
        begin_s = now_s + (5.0 if len(readings) == 2 else 0.0)  # the third step begins late
        now_s = begin_s + iteration.seconds
        readings.append(counter.joules(SCALE * (begin_s + 0.5 * iteration.seconds)))
        counter.note(iteration, SCALE * now_s)
        readings.append(counter.joules(SCALE * now_s))
        meter.note(replace(iteration, ends_s=[now_s]), begin_s)
        batcher.finish(iteration)
    assert len(readings) == 40
    assert readings == sorted(readings)
    assert counter.joules(SCALE * now_s) == pytest.approx(meter.latest_j)
    assert counter.joules(SCALE * (now_s + 3.0)) == pytest.approx(meter.latest_j + 3.0 * power.base_w)
