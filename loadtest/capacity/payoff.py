"""Where the speculation of a plan's candidates pays, against the batch size."""

from __future__ import annotations

from collections.abc import Iterable

from engines.files import Strict
from engines.planning import Payoff, payoff_of
from loadtest.capacity.candidates import Candidate


class SpeculationPayoff(Strict):
    """The payoff of one kind of speculation on one kind of engine.

    Attributes:
        name: GPU, precision and method.
        rows: The candidates that it holds for: they differ in limits that do not change a step.
    """

    name: str
    rows: tuple[str, ...]
    payoff: Payoff


def payoffs_of(candidates: Iterable[Candidate], *, isl: int, osl: int) -> tuple[SpeculationPayoff, ...]:
    """Return the payoff of each kind of engine with speculation.

    Args:
        isl: Mean prompt length of the demand; `osl`: its mean reply length.
    """
    alike: dict[str, list[Candidate]] = {}
    for each in candidates:
        if each.manifest is not None and each.manifest.speculative is not None:
            alike.setdefault(_kind(each), []).append(each)
    found = []
    for kind, own in alike.items():
        manifest = own[0].manifest
        payoff = None if manifest is None else payoff_of(manifest, isl=isl, osl=osl)
        if payoff is not None:
            found.append(SpeculationPayoff(name=kind, rows=tuple(each.name for each in own), payoff=payoff))
    return tuple(found)


def _kind(candidate: Candidate) -> str:
    assert candidate.manifest is not None
    speculative = candidate.manifest.speculative
    assert speculative is not None
    tensor = f" tp{candidate.tensor_parallel}" if candidate.tensor_parallel > 1 else ""
    length = f"{speculative.tokens_per_step:.2f} tokens a step"
    method = f"{speculative.method} {speculative.draft_len}"
    return f"{candidate.gpu} {candidate.precision}{tensor} {method} ({candidate.basis}, {length})"
