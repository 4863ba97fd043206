"""Several load generators as one: what master and workers say to each other, without a network."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import gevent.event
import msgpack
import pytest

from engines.errors import ToolError
from loadtest.client.endpoint import Endpoint
from loadtest.generator.distributed import master as masters
from loadtest.generator.distributed import worker as workers_side
from loadtest.generator.distributed.master import Master
from loadtest.generator.distributed.plan_files import files_of, schedule_digest, with_files
from loadtest.generator.distributed.worker import Outbox, Worker
from loadtest.generator.plan import GeneratorPlan
from loadtest.results.records import REQUESTS_NAME, read_records
from loadtest.scenario.schema import Scenario
from loadtest.traffic.closed_loop import ClosedLoop
from loadtest.traffic.levels import LevelPlan, plans_of
from loadtest.traffic.prompts import Prepared
from tests.unit.loadtest.generator.test_journal import record, under_way

AHEAD_S = 5000.0


class Clock:
    """A machine's clock: the test's, and so many seconds more."""

    now_s = 100.0

    def __init__(self, ahead_s: float = 0.0) -> None:
        self.ahead_s = ahead_s

    def __call__(self) -> float:
        """Return the time; a little passes."""
        Clock.now_s += 1e-5
        return Clock.now_s + self.ahead_s


class Bus:
    """Locust's runners and their network: messages arrive when the receiver's greenlet comes to run."""

    def __init__(self) -> None:
        self.master: Any = None
        self.clients: dict[str, Any] = {}
        self.workers: dict[str, Any] = {}

    def runner(self, name: str) -> Any:
        """Return a runner: the master's, or a worker's of that name."""
        handlers: dict[str, Callable[..., object]] = {}

        def send(kind: str, data: Any = None, client_id: str | None = None) -> None:
            if name == "master":
                receivers = [self.workers[client_id]] if client_id else list(self.workers.values())
            else:
                receivers = [self.master]
            for receiver in receivers:
                message = SimpleNamespace(type=kind, data=msgpack.loads(msgpack.dumps(data)), node_id=name)
                handler = receiver.handlers[kind]
                gevent.spawn_later(0, handler, environment=None, msg=message)

        events = SimpleNamespace(heartbeat_received=SimpleNamespace(add_listener=lambda _: None))
        made = SimpleNamespace(
            handlers=handlers,
            register_message=handlers.__setitem__,
            send_message=send,
            clients=self.clients,
            get_worker_index=lambda client: int(client[-1]),
            update_state=lambda _: None,
            quit=lambda: [worker.greenlet.clear() for worker in self.workers.values()],
            greenlet=[1],
            environment=SimpleNamespace(events=events),
        )
        if name == "master":
            self.master = made
        else:
            self.workers[name] = made
            self.clients[name] = SimpleNamespace(state="ready", user_classes_count={})
        return made


class FakeGenerator:
    """A worker's generator: a clock, and a reason to end."""

    why_end: str | None = None
    stopped: str | None = None

    def __init__(self, clock: Clock, outbox: Outbox, worker: int, workers: int) -> None:
        self.clock, self.outbox, self.worker, self.workers = clock, outbox, worker, workers
        self.began_monotonic_s = 0.0

    def now_s(self) -> float:
        """Return seconds since the run began, as far as this worker knows."""
        return self.clock() - self.began_monotonic_s

    def flush(self) -> None:
        """Do nothing: what ends is in the outbox at once."""


class FakeShare:
    """A worker's share of a level: every request ends at once."""

    def __init__(self, generator: FakeGenerator, level: int, plan: LevelPlan, *, first_id: int, begin_s: float) -> None:
        self.generator, self.level, self.begin_s = generator, level, begin_s
        requests = 6 if plan.concurrency is None else 7
        self.loop = ClosedLoop(
            plan.concurrency or 1,
            lambda number: SimpleNamespace(
                is_over=False,
                place=0,
                go_on=lambda _: None,
                skip_to=lambda _: None,
                exchange=SimpleNamespace(reply_tokens=2, think_s=0.0, max_tokens=None),
                kind=SimpleNamespace(
                    name=None, conversation=None, is_exact=True, lengths=SimpleNamespace(max_tokens=None)
                ),
                conversation=SimpleNamespace(number=number, exchanges=[0]),
            ),  # type: ignore[arg-type, return-value]
            requests,
            1,
            first_id,
            worker=generator.worker,
            workers=generator.workers,
        )
        self.next_id = first_id + 100
        self.finished = False

    def check_users(self) -> None:
        """Let every user send once."""
        for user in self.loop.users:
            if self.loop.is_over:
                return
            now_s = self.generator.now_s()
            turn = self.loop.next_turn(user, now_s)
            values = {"level": self.level, "phase": turn.phase, "worker": self.generator.worker, "sent_s": now_s}
            if_lost = under_way(turn.id).model_copy(update=values)
            self.generator.outbox.note_sent(turn.id, if_lost.model_dump_json())
            self.generator.outbox.note_end(record(turn.id, **values))
            self.loop.note_end(turn, now_s)

    @property
    def is_warm(self) -> bool:
        """Whether its users have warmed up."""
        return self.loop.is_warm

    @property
    def is_done(self) -> bool:
        """Whether its measured requests have ended."""
        return self.loop.is_over

    def begin_measuring(self, now_s: float) -> None:
        """Measure from now on."""
        self.loop.begin(now_s)

    def finish(self, *, whole: bool) -> dict[str, Any]:
        """End."""
        return {
            "begin_s": self.begin_s,
            "measure_s": self.loop.measure_s or 0.0,
            "end_s": self.loop.end_s or 0.0,
            "complete": whole and self.is_done,
            "next_id": self.loop.next_id,
        }


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Collect what the master would say on its output."""
    heard: list[dict[str, Any]] = []
    monkeypatch.setattr(masters, "tell", lambda **told: heard.append(told))
    monkeypatch.setattr(masters, "tell_progress", lambda *_: None)
    monkeypatch.setattr(masters, "REPORT_S", 0.01)
    monkeypatch.setattr(workers_side, "REPORT_S", 0.01)
    monkeypatch.setattr(masters, "CHECK_S", 0.0)
    return heard


def _plan(folder: Path, scenario: Scenario) -> GeneratorPlan:
    cuttings = folder / "prompts"
    cuttings.mkdir()
    (cuttings / "prompts.json").write_text(Prepared(as_text=False).model_dump_json())
    return GeneratorPlan(
        endpoint=Endpoint(host="h", port=1, protocol="triton-http"),
        scenario=scenario,
        prompts=str(cuttings),
        records=str(folder / REQUESTS_NAME),
        under_way=str(folder / "under-way"),
        began_monotonic_s=Clock.now_s,
        lengths=((5, 2),) * len(plans_of(scenario)) if scenario.arrivals is None else (),
    )


def _worker(bus: Bus, name: str, ahead_s: float) -> Worker:
    clock = Clock(ahead_s)
    return Worker(
        bus.runner(name),
        prepare=lambda _, outbox, worker, workers: FakeGenerator(clock, outbox, worker, workers),
        open_share=FakeShare,
        clock=clock,
    )


def _run(bus: Bus, plan: GeneratorPlan, workers: list[Worker], meanwhile: Callable[[], None] = lambda: None) -> None:
    master = Master(
        bus.runner("master"),
        plan,
        expected=len(workers),
        on_look=lambda _: None,
        on_record=lambda _: None,
        clock=Clock(),
    )
    running = [gevent.spawn(worker.run) for worker in workers]
    gevent.spawn(meanwhile)
    with gevent.Timeout(30):
        master.run(within_s=10)
    master.let_go()
    gevent.joinall(running, timeout=10, raise_error=True)


def test_records_of_all_workers_are_on_one_clock(tmp_path: Path, said: list[dict[str, Any]]) -> None:
    """A worker whose clock is far ahead sends its records on the run's clock; what was measured of it is kept."""
    bus = Bus()
    plan = _plan(tmp_path, Scenario(concurrency=(3, 4)))
    began_s = Clock.now_s
    _run(bus, plan, [_worker(bus, "w0", 0.0), _worker(bus, "w1", AHEAD_S)])
    found = list(read_records(tmp_path))
    assert {each.worker for each in found} == {0, 1}
    assert len({each.id for each in found}) == len(found)
    assert all(0 <= each.sent_s <= Clock.now_s - began_s for each in found)
    assert [each.sent_s for each in found if each.worker] != []
    for level in (0, 1):
        measured = [each for each in found if each.level == level and each.phase == "measure"]
        assert len(measured) == 7
    levels = [each["level"] for each in said if "level" in each]
    assert [level["concurrency"] for level in levels] == [3, 4]
    assert all(level["complete"] for level in levels)
    clocks = [clock for each in said if "clocks" in each for clock in each["clocks"]]
    assert [(clock["worker"], clock["level"]) for clock in clocks] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    for clock in clocks:
        truth_s = AHEAD_S * clock["worker"]
        assert abs(clock["offset_s"] - truth_s) <= clock["uncertainty_s"]
        assert abs(clock["drift_s"]) <= 2 * clock["uncertainty_s"] + 0.01


def test_a_worker_that_does_not_listen_yet_is_waited_for(tmp_path: Path, said: list[dict[str, Any]]) -> None:
    """Connected is not ready: what is sent before a worker listens would be lost, and the run would wait for ever."""
    bus = Bus()
    bus.runner("w0")  # Locust has connected; nothing listens
    workers = [_worker(bus, "w1", 0.0)]

    def listen() -> None:
        gevent.sleep(0.2)
        gevent.spawn(_worker(bus, "w0", 0.0).run)

    plan = _plan(tmp_path, Scenario(concurrency=(2,)))
    gevent.spawn(listen)
    master = Master(
        bus.runner("master"), plan, expected=2, on_look=lambda _: None, on_record=lambda _: None, clock=Clock()
    )
    gevent.spawn(workers[0].run)
    with gevent.Timeout(30):
        master.run(within_s=10)
    master.let_go()
    assert said[-1]["level"]["complete"]
    assert {each.worker for each in read_records(tmp_path)} == {0, 1}


def test_measuring_begins_for_all_when_all_are_warm(tmp_path: Path, said: list[dict[str, Any]]) -> None:
    """No worker measures before the last has warmed up: the level's first measured request follows every first one."""
    bus = Bus()
    _run(bus, _plan(tmp_path, Scenario(concurrency=(4,))), [_worker(bus, f"w{n}", 0.0) for n in range(2)])
    found = list(read_records(tmp_path))
    first_sent_s = [min(each.sent_s for each in found if each.worker == worker) for worker in (0, 1)]
    assert min(each.sent_s for each in found if each.phase == "measure") > max(first_sent_s)
    assert said[-1]["level"]["measure_s"] > max(first_sent_s)


def test_a_lost_worker_ends_the_run(tmp_path: Path, said: list[dict[str, Any]]) -> None:
    """The level ends early and is said to be incomplete, the worker is named, what the others saw is kept."""
    bus = Bus()
    doomed, other = _worker(bus, "w0", 0.0), _worker(bus, "w1", 0.0)
    begun = gevent.event.Event()
    original = doomed._on_level

    def never_warm(**told: Any) -> None:
        original(**told)
        doomed._share.check_users = lambda: None  # its users hang
        begun.set()

    doomed._on_level = never_warm  # type: ignore[method-assign]

    def kill() -> None:
        begun.wait(20)
        gevent.sleep(0.1)
        bus.clients["w0"].state = "missing"

    _run(bus, _plan(tmp_path, Scenario(concurrency=(4, 8))), [doomed, other], kill)
    assert [each["lost"] for each in said if "lost" in each] == [f"worker 0 on {socket.gethostname()} was lost"]
    levels = [each["level"] for each in said if "level" in each]
    assert [level["complete"] for level in levels] == [False]
    assert said[-1]["ended"].endswith("was lost")
    assert {each.worker for each in read_records(tmp_path)} == {1}


def test_a_worker_that_cannot_go_on_ends_the_run_with_its_reason(tmp_path: Path, said: list[dict[str, Any]]) -> None:
    """What one worker finds out, such as that the server is gone, is said of the run."""
    bus = Bus()
    worker = _worker(bus, "w0", 0.0)
    original = worker._on_level

    def gone(**told: Any) -> None:
        original(**told)
        worker._generator.why_end = "no server at h:1"

    worker._on_level = gone  # type: ignore[method-assign]
    _run(bus, _plan(tmp_path, Scenario(concurrency=(4, 8))), [worker])
    assert said[-1] == {"ended": "no server at h:1"}
    assert [each["level"]["complete"] for each in said if "level" in each] == [False]


def test_a_worker_whose_master_is_silent_gives_up() -> None:
    """Heartbeats that stop, by the monotonic clock: a load that nobody directs is not sent on."""
    clock = Clock()
    bus = Bus()
    bus.runner("master").handlers["here"] = lambda **_: None
    worker = Worker(bus.runner("w0"), prepare=lambda *_: None, open_share=FakeShare, clock=clock)
    clock.ahead_s += workers_side.MASTER_SILENT_S + 1
    with gevent.Timeout(10), pytest.raises(ToolError, match="no message from the master"):
        worker.run()


def test_a_request_that_ended_since_the_last_report_is_reported_once() -> None:
    """Its end alone is told; one that is still under way is told as such."""
    outbox = Outbox()
    for number in (1, 2):
        outbox.note_sent(number, under_way(number).model_dump_json())
    outbox.note_end(record(1))
    taken = outbox.take()
    assert [number for number, _ in taken["sent"]] == [2]
    assert [number for number, _ in taken["ended"]] == [1]
    assert outbox.in_flight == 1
    assert outbox.take() == {"sent": [], "ended": [], "texts": []}


def test_files_a_scenario_names_go_to_the_workers(tmp_path: Path) -> None:
    """A trace is sent under a name of its own beside what prompts are made from, and the plan made to point at it."""
    trace = tmp_path / "trace.csv"
    scenario = Scenario.model_validate({"arrivals": {"process": "trace", "path": str(trace)}})
    plan = _plan(tmp_path, scenario)
    files = files_of(plan)
    assert files["prompts.json"] == Path(plan.prompts) / "prompts.json"
    name = next(name for name, path in files.items() if path == trace)
    there = with_files(GeneratorPlan.model_validate_json(plan.model_dump_json()), Path("/else/where"))
    assert there.scenario.files() == [Path("/else/where") / name]
    assert there.prompts == "/else/where"


def test_schedules_that_differ_are_told_apart() -> None:
    """Another seed draws other arrivals, and no two workers may send different ones unnoticed."""
    scenario = Scenario(rate_per_s=(5.0,), duration_s=10.0)
    same = schedule_digest(plans_of(scenario))
    assert same == schedule_digest(plans_of(scenario.model_copy()))
    assert same != schedule_digest(plans_of(scenario.model_copy(update={"seed": 1})))
