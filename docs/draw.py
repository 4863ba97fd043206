"""Draw the charts of docs/explanation from the code they explain (`make docs`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from engines.emulator.settings import batcher_for
from engines.files import Document, MadeBy
from engines.manifest import EngineManifest
from engines.planning import emulated_manifest
from engines.planning.plan import make_plan
from engines.planning.recipe import resolve_recipe
from engines.spec.deployment import Factors
from engines.steptime.calibrated import Calibrated
from engines.steptime.shape import StepShape, StepTime
from engines.steptime.source import step_time_for
from loadtest.simulate.virtual_server import Arrivals, Sent, Users, VirtualServer
from loadtest.traffic import always
from loadtest.traffic.closed_loop import ClosedLoop
from loadtest.traffic.levels import Turn

IMAGES = Path(__file__).parent / "images"
HEAD = Document(made_by=MadeBy(command="make docs", version="0"))
BLUE, ORANGE, GREY = "#1f77b4", "#d95f02", "#555555"
TAG = {"boxstyle": "round,pad=0.4", "facecolor": "#7b3f9e", "edgecolor": "none"}


def main() -> None:
    """Write every chart."""
    mpl.use("agg")
    mpl.rcParams.update({"svg.hashsalt": "docs", "font.size": 10, "axes.grid": True, "grid.alpha": 0.25})
    engine = planned(**{"limits.max_batch_size": 256, "limits.max_num_tokens": 8192})
    for name, figure in (
        ("iterations", iterations(engine)),
        ("kv-exhaustion", kv_exhaustion(engine)),
        ("attention-waves", attention_waves(engine)),
    ):
        figure.savefig(IMAGES / f"{name}.svg", format="svg", metadata=dict.fromkeys(("Creator", "Date")))


def planned(**flags: Any) -> EngineManifest:
    """Return the plan of Llama-3-8B FP8 on an H100."""
    resolved = resolve_recipe(
        None, {"model": "llama-3-8b", "limits.max_seq_len": 8192, "workload.longest_isl": 7500, **flags}
    )
    return emulated_manifest(make_plan(resolved, head=HEAD), resolved.recipe)


def iterations(engine: EngineManifest) -> Figure:
    """Draw iterations one after the other while a long prompt joins sixteen decoding sequences."""
    early = [Sent(Turn(number, "measure", 60), 0.0, 500) for number in range(16)]
    late = [Sent(Turn(16, "measure", 20), 0.16, 7000), Sent(Turn(17, "measure", 20), 0.24, 2000)]
    server = VirtualServer(batcher_for(engine), Arrivals([*early, *late]), keep_steps=True)
    ended = list(server.run())
    ends_s = server.left_s
    starts_s = np.concatenate([[0.0], ends_s[:-1]])
    figure = Figure(figsize=(11, 5.2), facecolor="white")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1, 1.2])
    figure.subplots_adjust(left=0.075, right=0.98, top=0.87, bottom=0.1, hspace=0.12)
    prompts = {step.first_index: step.shape.prefill_tokens for step in server.steps}
    colours = [ORANGE if prompts.get(place, 0) else BLUE for place in range(len(ends_s))]
    above.bar(
        starts_s * 1e3, (ends_s - starts_s) * 1e3, (ends_s - starts_s) * 1e3, align="edge", color=colours, ec="white"
    )
    above.set(ylabel="iteration, ms")
    for each in ended:
        times_ms = np.array(server.token_times_s(each)) * 1e3
        row = each.sent.turn.id
        below.plot([each.sent.sent_s * 1e3, times_ms[0]], [row, row], color=ORANGE, lw=1.2, alpha=0.7)
        below.plot(times_ms, np.full(len(times_ms), row), ".", ms=3.5, color=BLUE)
    below.set(xlabel="milliseconds since the first request", ylabel="request")
    _title(
        figure,
        "One prompt's iteration is everybody's gap",
        "orange: an iteration with a prompt, and waiting for the first token",
    )
    return figure


def kv_exhaustion(engine: EngineManifest) -> Figure:
    """Draw what happens to latency where the KV cache, not the batch limit, ends the growth."""
    users = (1, 2, 5, 10, 25, 50, 75, 100, 110, 120, 130, 150, 175, 200)
    rows = [_closed(engine, count, isl=7000, osl=1000) for count in users]
    largest = engine.kv_cache.blocks * engine.kv_cache.tokens_per_block / 8000
    figure = Figure(figsize=(11, 3.9), facecolor="white")
    panels = figure.subplots(1, 3)
    figure.subplots_adjust(left=0.06, right=0.985, top=0.8, bottom=0.15, wspace=0.24)
    names = ("mean TTFT, s", "mean ITL, ms", "reply tokens/s")
    for panel, name, values in zip(panels, names, zip(*rows, strict=True), strict=True):
        panel.plot(users, values, "o-", color=BLUE, ms=4)
        panel.axvline(largest, color=ORANGE, lw=1)
        panel.set(xlabel="users", title=name, xlim=(0, users[-1] * 1.03))
    panels[0].text(
        largest, panels[0].get_ylim()[1] * 0.95, " the KV cache is full ", color=ORANGE, ha="right", va="top"
    )
    _title(
        figure, "Past the KV cache, users wait for whole replies of others", "prompts of 7,000 tokens, replies of 1,000"
    )
    return figure


def attention_waves(engine: EngineManifest) -> Figure:
    """Draw decode steps by batch: attention split along the context, and a block for each query head."""
    source = step_time_for(engine)
    waves = engine.gpu.multiprocessors / engine.model.attention_heads
    reads = engine.model.attention_heads / engine.model.kv_heads
    unsplit = Calibrated(source, Factors(wave_sequences=waves, wave_blocks=4, wave_tail=1.0, wave_reads=reads))
    batches = np.arange(1, 33)
    figure = Figure(figsize=(11, 3.9), facecolor="white")
    panels = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(left=0.065, right=0.985, top=0.8, bottom=0.15, wspace=0.08)
    for panel, name, step_time in zip(panels, ("split along the context", "in waves"), (source, unsplit), strict=True):
        for context, colour in ((300, GREY), (2000, BLUE), (7500, ORANGE)):
            panel.plot(
                batches,
                _steps_ms(step_time, batches.tolist(), context),
                ".-",
                color=colour,
                label=f"{context:,} tokens",
            )
        panel.set(xlabel="sequences decoding", title=f"decode attention {name}")
    panels[0].set_ylabel("decode step, ms")
    panels[0].legend(title="context of each", frameon=False)
    _title(figure, "A batch of one can cost a wave of four", "the published served Llama-3-8B behaves like the right")
    return figure


def _closed(engine: EngineManifest, users: int, *, isl: int, osl: int) -> tuple[float, float, float]:
    loop = ClosedLoop(users, always(isl, osl), 3 * users, 1, 0, staggered=False)
    server = VirtualServer(batcher_for(engine), Users(loop))
    measured = [each for each in server.run() if each.sent.turn.phase == "measure"]
    sent = np.array([each.sent.sent_s for each in measured])
    first, last = np.array([server.first_and_last_s(each) for each in measured]).T
    return (
        float((first - sent).mean()),
        float((last - first).mean() / (osl - 1) * 1e3),
        users * osl / float((last - sent).mean()),
    )


def _steps_ms(step_time: StepTime, batches: Sequence[int], context: int) -> list[float]:
    return [1e3 * step_time.seconds(StepShape(count, count * context)) for count in batches]


def _title(figure: Figure, title: str, subtitle: str) -> None:
    figure.text(0.02, 0.955, title, fontsize=14, fontweight="bold", va="center")
    figure.text(0.02, 0.905, subtitle, fontsize=10, color=GREY, va="center")
    figure.text(0.98, 0.945, "predicted", ha="right", va="center", color="white", fontweight="bold", bbox=TAG)


if __name__ == "__main__":
    main()
