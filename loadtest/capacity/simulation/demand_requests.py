"""Requests of a demand: conversations drawn from its distributions, or the rows of its trace."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from engines.errors import UserError
from loadtest.capacity.inputs import Described
from loadtest.scenario import Scenario, Trace, read_trace
from loadtest.traffic import SAMPLED_CONVERSATIONS, ConversationSampler, ConversationState

NOMINAL_ITL_S = 0.02  # assumed ITL of replies when drawing the time of a conversation's next turn
MIN_TRACE_REQUESTS = 5  # of fewer, nothing is left at the lower rates that a search tries


class SimRequest(NamedTuple):
    """One request: send time, lengths, class and shared prefix.

    Attributes:
        osl: Tokens at which the model ends its reply.
        max_tokens: Requested maximum; None: the length of the reply.
    """

    at_s: float
    isl: int
    osl: int
    class_name: str = ""
    prefix_hashes: tuple[int, ...] = ()
    max_tokens: int | None = None


def scenario_of(traffic: Described, seed: int, folder: Path) -> Scenario:
    """Return described traffic as a scenario; relative paths start at `folder`."""
    return traffic.scenario(seed).moved(lambda path: str(folder / path))


@cache
def sampler_of(scenario_json: str) -> ConversationSampler:
    """Return the sampler of a scenario's conversations."""
    return ConversationSampler(Scenario.model_validate_json(scenario_json))


def turns_of(
    state: ConversationState, tokens_per_block: int | None, *, has_own_blocks: bool = True
) -> Iterator[SimRequest]:
    """Yield the requests of a conversation, which starts at 0 s; the next turn follows a reply of nominal duration.

    Args:
        tokens_per_block: Of the engine's KV cache; None: without hashes of blocks.
        has_own_blocks: Whether blocks after the shared prefix have hashes.
    """
    at_s = 0.0
    while not state.is_over:
        exchange = state.exchange
        hashes = () if tokens_per_block is None else state.block_hashes(tokens_per_block)
        if not has_own_blocks and tokens_per_block is not None:
            hashes = hashes[: state.conversation.prefix_tokens // tokens_per_block]
        yield SimRequest(at_s, state.prompt_tokens, exchange.reply_tokens, state.kind.name or "", hashes)
        at_s += exchange.reply_tokens * NOMINAL_ITL_S
        state.go_on(exchange.reply_tokens)
        at_s += 0.0 if state.is_over else state.exchange.think_s


def mean_turns(traffic: Described, seed: int, folder: Path) -> float:
    """Return the mean number of requests per arrival: the turns of a conversation, 1 without conversations."""
    return mean_turns_of(scenario_of(traffic, seed, folder).model_dump_json())


@cache
def mean_turns_of(scenario_json: str) -> float:
    """Return the same of a scenario."""
    sampler = sampler_of(scenario_json)
    drawn = (len(sampler.draw(number).exchanges) for number in range(SAMPLED_CONVERSATIONS))
    return sum(drawn) / SAMPLED_CONVERSATIONS


def requests_of_trace(trace: Trace, folder: Path) -> tuple[SimRequest, ...]:
    """Return the requests of a trace's slice, in order of time; a trace's relative path starts at `folder`.

    Raises:
        UserError: There are fewer than `MIN_TRACE_REQUESTS`, or all came at one time: a rate follows from neither.
    """
    return _requests_of_trace(trace.model_dump_json(), str(folder))


@cache
def _requests_of_trace(trace_json: str, folder: str) -> tuple[SimRequest, ...]:
    trace = Trace.model_validate_json(trace_json)
    schedule = read_trace(trace, folder=Path(folder))
    found = tuple(
        SimRequest(each.at_s, each.isl or 1, each.osl or 1, "", each.prefix_hashes, each.max_tokens)
        for each in schedule.arrivals
    )
    length_s = found[-1].at_s - found[0].at_s
    if len(found) < MIN_TRACE_REQUESTS or not length_s:
        raise UserError(
            f"{Path(folder) / trace.path}: too few requests for a plan, {len(found)} in {length_s:g} s; at least "
            f"{MIN_TRACE_REQUESTS} are needed, at more than one time",
            hint="take a longer trace or slice, or state the rate (process: described)",
        )
    return found
