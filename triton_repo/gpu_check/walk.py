"""Walk the road link by link; a link that fails stops only what needs it, and the report is there at every moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from engines.errors import CommandError
from engines.files import MadeBy, write_json, write_text
from triton_repo.gpu_check import checks
from triton_repo.gpu_check.links import Link, links
from triton_repo.gpu_check.machine import machine_facts
from triton_repo.gpu_check.report import REPORT_JSON, REPORT_TEXT, Outcome, Report, report_text
from triton_repo.gpu_check.session import Session

Check = Callable[[Session], str]
CHECKS: dict[str, Check] = {
    "quantize": checks.quantize,
    "export": checks.export,
    "convert": checks.convert,
    "build-flags": checks.build_flags,
    "compile": checks.compile_engine,
    "engine-config": checks.engine_config,
    "smoke": checks.smoke,
    "repository": checks.repository,
    "cpp-parameters": checks.cpp_parameters,
    "serving": checks.serving,
    "metrics": checks.metrics,
    "load": checks.load,
    "llm-api": checks.llm_api,
    "trtllm-serve": checks.trtllm_serve,
}
# What an outside program can do to a check: fail, answer with no JSON, leave out a key or a file.
_FAILURES = (CommandError, OSError, ValueError, LookupError)


def walk(
    session: Session,
    *,
    made_by: MadeBy,
    on_outcome: Callable[[Link, Outcome], None],
    found: Mapping[str, Check] = CHECKS,
) -> Report:
    """Check every link in order and return the report; it is written after each of them.

    Args:
        on_outcome: Called with each link and its outcome.
        found: The check of each link.
    """
    machine = machine_facts()
    outcomes: dict[str, Outcome] = {}
    try:
        for link in links():
            session.link = link.id
            outcomes[link.id] = _outcome(session, link, outcomes, found[link.id])
            _write(session, outcomes, machine, made_by)
            on_outcome(link, outcomes[link.id])
    finally:
        session.link = "stop"
        session.stop()
    return _write(session, outcomes, machine, made_by)


def _outcome(session: Session, link: Link, before: Mapping[str, Outcome], check: Check) -> Outcome:
    waiting = [need for need in link.needs if before[need].status != "passed"]
    if waiting:
        return Outcome(link=link.id, status="not reached", detail=f"needs {', '.join(waiting)}")
    begin = time.monotonic()
    try:
        detail = check(session)
    except _FAILURES as error:
        text = str(error) or type(error).__name__
        return Outcome(link=link.id, status="failed", detail=text, seconds=round(time.monotonic() - begin, 1))
    return Outcome(link=link.id, status="passed", detail=detail, seconds=round(time.monotonic() - begin, 1))


def _write(session: Session, outcomes: Mapping[str, Outcome], machine: dict[str, str], made_by: MadeBy) -> Report:
    waiting = [
        Outcome(link=link.id, status="not reached", detail="the walk ended before it")
        for link in links()
        if link.id not in outcomes
    ]
    report = Report(
        made_by=made_by,
        checkpoint=str(session.settings.checkpoint or "SmolLM2-135M-Instruct"),
        precision=session.settings.precision,
        machine=machine,
        outcomes=(*outcomes.values(), *waiting),
    )
    write_json(session.settings.out / REPORT_JSON, report)
    write_text(session.settings.out / REPORT_TEXT, report_text(report))
    return report
