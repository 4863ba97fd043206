"""The schema of scenarios: requests, arrivals, objectives, limits of the validity checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, AliasChoices, Field, JsonValue, field_validator, model_validator

from engines.files import MAX_TOKENS, Strict
from loadtest.scenario.arrivals import Arrivals
from loadtest.scenario.distributions import Distribution, PairsOf, Pause, TokensOrAuto, fixed
from loadtest.scenario.slo import Objectives
from loadtest.scenario.traces import MAX_ARRIVALS, Trace

GENERATED_PROMPTS = ("chat", "random")
DEFAULT_ISL, DEFAULT_OSL = 256, 64
# Bounds against typing errors: a machine has 65,536 ports, and sends far fewer requests per second.
MAX_USERS = 65_536
MAX_RATE_PER_S = 100_000.0
LONGEST_S = 1e7  # 116 days
Users = Annotated[int, Field(ge=1, le=MAX_USERS)]
RatePerS = Annotated[float, Field(gt=0, le=MAX_RATE_PER_S)]
Load = Literal["concurrency", "rate_per_s", "arrivals"]
PROMPT_SUFFIXES = (".json", ".jsonl", ".ndjson")


class Lengths(Strict):
    """Tokens of prompt and reply: a number, or a distribution such as `lognormal(mean=1024, cv=0.8, max=8192)`.

    Attributes:
        isl: New tokens of a prompt, without shared prefix and conversation history. `auto`: the length of a prompt from
            a file; 256 for generated prompts.
        osl: Tokens of a reply. `auto`: the length of the reply in the prompt file if there is one, else 64.
        pairs: Instead of both, a file of length pairs: a CSV or JSON Lines of isl and osl, or a trace.
        max_tokens: Maximum reply tokens of a request, if the model decides when its replies end: `osl` is then the
            expected length. A scheduler that never evicts reserves KV blocks for all of them. None: each request asks
            for exactly `osl`.
    """

    isl: TokensOrAuto = "auto"
    osl: TokensOrAuto = "auto"
    pairs: PairsOf | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Self:
        if self.pairs is not None and (self.isl != "auto" or self.osl != "auto"):
            raise ValueError("pairs state both lengths: omit isl and osl")
        return self


class Prefixes(Strict):
    """Prefixes that prompts share, such as system prompts and retrieved documents, which KV cache reuse exploits.

    Attributes:
        count: Number of different prefixes.
        tokens: Length of each, in addition to the prompt's `isl`.
        share: Share of prompts (of first turns, in conversations) that start with one of them.
    """

    count: Annotated[int, Field(ge=1, le=MAX_ARRIVALS)] = 1
    tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)]
    share: Annotated[float, Field(ge=0, le=1)] = 1.0


class Conversations(Strict):
    """Multi-turn conversations; each prompt contains the whole history.

    Attributes:
        turns: Prompts per conversation. `auto`: as in the prompt file.
        think_s: Seconds from the end of a reply to the next prompt.
        history: Replies in later prompts: the server's own `replies`, or a `stand_in` of the same number of tokens (the
            file's reply, if there is one).
        max_tokens: A conversation ends before a turn whose prompt plus reply would exceed this.
    """

    turns: TokensOrAuto = "auto"
    think_s: Pause = fixed(0.0)
    history: Literal["replies", "stand_in"] = "replies"
    max_tokens: Annotated[int, Field(ge=2, le=MAX_TOKENS)] | None = None


def _source(value: str) -> str:
    if value not in GENERATED_PROMPTS and Path(value).suffix not in PROMPT_SUFFIXES:
        raise ValueError("expected chat, random, or a .json or .jsonl file")
    return value


PromptSource = Annotated[str, AfterValidator(_source)]


class TrafficClass(Strict):
    """One kind of request in a mix; omitted keys are inherited from the scenario.

    Attributes:
        name: Label of its records and figures.
        weight: Relative frequency among the classes.
        lengths: Its own.
        prompts: Its own.
        prefixes: Its own; two classes never share a prefix.
        conversation: Its own.
        replies: Its own.
        objectives: Objectives of this class, in addition to the scenario's.
    """

    name: Annotated[str, Field(min_length=1, pattern=r"^[\w.-]+$")]
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    lengths: Lengths | None = None
    prompts: PromptSource | None = None
    prefixes: Prefixes | None = None
    conversation: Conversations | None = None
    replies: Literal["exact", "free"] | None = None
    objectives: Objectives | None = None


@dataclass(frozen=True, slots=True)
class Kind:
    """A traffic class with all values resolved.

    Attributes:
        name: None if the scenario has no classes.
        share: Share of all requests (or of conversations, if there are any).
        isl: None: the length in the prompt file.
        osl: None: the length of the reply in the prompt file.
        pairs: Instead of both.
        is_exact: Whether a reply must have the requested length.
    """

    name: str | None
    share: float
    lengths: Lengths
    isl: Distribution | None
    osl: Distribution | None
    prompts: str
    prefixes: Prefixes | None
    conversation: Conversations | None
    is_exact: bool
    objectives: Objectives | None

    @property
    def has_file(self) -> bool:
        """Whether its prompts come from a file."""
        return self.prompts not in GENERATED_PROMPTS

    @property
    def needs_file_lengths(self) -> bool:
        """Whether its lengths are unknown until its prompt file is tokenized."""
        of_file = self.lengths.pairs is None and (self.isl is None or self.osl is None)
        turns = self.conversation is not None and self.conversation.turns == "auto"
        return self.has_file and (of_file or turns)


class ValidityLimits(Strict):
    """Limits of the validity checks; docs/measurements.md explains where they come from.

    Attributes:
        arrivals_late_s: Limit of the p99 lateness of an open loop's requests, in engine seconds.
        clocks_apart_s: Maximum uncertainty of each worker's clock, including its drift over a level.
    """

    arrivals_late_s: Annotated[float, Field(gt=0)] = 0.02
    clocks_apart_s: Annotated[float, Field(gt=0)] = 0.005
    server_late_ratio: Annotated[float, Field(gt=0, description="Emulator lateness p99 over its mean step.")] = 0.5
    generator_late_ratio: Annotated[
        float, Field(gt=0, description="p99 of the generator's own timers over an ITL.")
    ] = 0.5


class Scenario(Strict):
    """A load, closed or open.

    Closed: at each level a fixed number of users, each of which sends its next request when the last has ended. Open:
    requests at times drawn beforehand, regardless of the server. With a `conversation`, a user holds one after the
    other, and an open loop's times are the starts of conversations.

    Attributes:
        name: Label of runs and figures.
        rate_per_s: Instead of users, the request rate of each level: a Poisson process of `duration_s`, drawn from the
            seed and never slowed by the server.
        arrivals: Instead of either, one level of any other open-loop process, or of a trace with its own lengths.
        duration_s: How long requests are sent, with a rate.
        warmup_ratio: Share of that time at the start that is not measured.
        requests_per_user: Minimum number of measured requests per user.
        window_s: Requests sent within this time of the first measured request are also measured.
        concurrency: Users of each level, in order.
        lengths: Tokens of prompts and replies.
        requests: Measured requests per level; users without further measured requests maintain the load unmeasured.
        warmup_requests: Requests of each user before its level's measurement.
        start: How the users of a level start: spread over the duration of a request, or all together.
        prompts: `chat`: real chat text; `random`: random tokens; or a file: ShareGPT's JSON, or JSON Lines with
            `prompt`, `text`, `messages` or `conversations`.
        prefixes: Prefixes that prompts share.
        conversation: Makes requests turns of conversations.
        replies: `exact`: each reply has the requested length; `free`: it may end earlier, and `osl` is the maximum.
        classes: Classes of a mix; each may have its own lengths, prompts and objectives.
        objectives: Objectives for all requests.
        model: Model to load: on Triton, `tensorrt_llm` takes tokens, `ensemble` and `tensorrt_llm_bls` take text; on an
            OpenAI server, any name it lists.
        seed: Seed for arrivals, lengths and prompts; the same seed gives the same requests.
        sample_interval_s: Wall seconds between samples of the server's metrics.
        validity_limits: Limits of the validity checks.
        level_timeout_s: Wall seconds after which a level is ended; for an open loop, in addition to its duration.
        request_timeout_s: Wall seconds without a byte after which a request has failed.
        reply_timeout_s: Wall seconds from sending after which an unfinished reply has failed.
        unreachable_s: Wall seconds without any accepted connection after which the run is ended.
        extra_body: Fields merged into every request; null removes one.
    """

    name: str = "sweep"
    concurrency: Annotated[tuple[Users, ...], Field(min_length=1)] = (1, 2, 4, 8, 16, 32, 64)
    lengths: Lengths = Lengths()
    rate_per_s: Annotated[tuple[RatePerS, ...], Field(min_length=1)] | None = None
    arrivals: Arrivals | None = None
    duration_s: Annotated[float, Field(gt=0, le=LONGEST_S)] = 600.0
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    requests: Annotated[int, Field(ge=1, le=MAX_ARRIVALS)] = 32
    requests_per_user: Annotated[int, Field(ge=0, le=MAX_ARRIVALS)] = 0
    window_s: Annotated[float, Field(ge=0, le=LONGEST_S)] = 0.0
    warmup_requests: Annotated[int, Field(ge=0, le=MAX_ARRIVALS)] = 1
    start: Literal["staggered", "together"] = "staggered"
    prompts: PromptSource = "chat"
    prefixes: Prefixes | None = None
    conversation: Conversations | None = None
    replies: Literal["exact", "free"] = "exact"
    classes: tuple[TrafficClass, ...] = ()
    objectives: Objectives | None = None
    model: str = "tensorrt_llm"
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    level_timeout_s: Annotated[float, Field(gt=0, le=LONGEST_S)] = 600.0
    request_timeout_s: Annotated[float, Field(gt=0, le=LONGEST_S)] = 60.0
    reply_timeout_s: Annotated[float, Field(gt=0, le=LONGEST_S)] = 600.0
    unreachable_s: Annotated[float, Field(ge=0, le=LONGEST_S)] = 5.0
    extra_body: dict[str, JsonValue] = Field(default_factory=dict)
    sample_interval_s: Annotated[float, Field(ge=0.05, le=LONGEST_S)] = 0.25
    validity_limits: ValidityLimits = Field(
        default=ValidityLimits(), validation_alias=AliasChoices("validity_limits", "trust")
    )

    @field_validator("classes")
    @classmethod
    def _names_once(cls, classes: tuple[TrafficClass, ...]) -> tuple[TrafficClass, ...]:
        names = [each.name for each in classes]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"two classes have the name '{twice}'")
        return classes

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if isinstance(self.arrivals, Trace):
            stated = [name for name in ("classes", "prefixes", "conversation") if getattr(self, name)]
            if stated:
                raise ValueError(f"a trace states its own requests: omit {stated[0]}")
        for kind in self.kinds:
            _check(kind)
        return self

    def requests_of(self, concurrency: int) -> int:
        """Return the minimum number of measured requests of a closed loop's level."""
        return max(self.requests, self.requests_per_user * concurrency)

    @property
    def is_open(self) -> bool:
        """Whether the scenario is an open loop."""
        return self.load != "concurrency"

    @property
    def load(self) -> Load:
        """The key that states its load."""
        if self.arrivals is not None:
            return "arrivals"
        return "concurrency" if self.rate_per_s is None else "rate_per_s"

    @property
    def is_uniform(self) -> bool:
        """Whether all requests have one prompt length and one reply length, and none reuses another's KV cache."""
        if len(self.kinds) > 1 or isinstance(self.arrivals, Trace):
            return False
        (kind,) = self.kinds
        lengths = (kind.isl, kind.osl)
        alone = kind.prefixes is None and kind.conversation is None and kind.lengths.pairs is None
        return alone and all(each is not None and each.is_fixed for each in lengths)

    @property
    def levels(self) -> int:
        """Number of levels."""
        return 1 if self.load == "arrivals" else len(getattr(self, self.load))

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The resolved classes; a single one without a name if there are none."""
        total = sum(each.weight for each in self.classes)
        if not self.classes:
            return (self._kind(None, 1.0),)
        return tuple(self._kind(each, each.weight / total) for each in self.classes)

    def _kind(self, of: TrafficClass | None, share: float) -> Kind:
        def settled(name: str) -> Any:
            own = None if of is None else getattr(of, name)
            return getattr(self, name) if own is None else own

        lengths, prompts = settled("lengths"), settled("prompts")
        has_file = prompts not in GENERATED_PROMPTS
        return Kind(
            name=None if of is None else of.name,
            share=share,
            lengths=lengths,
            isl=_length(lengths.isl, None if has_file else fixed(DEFAULT_ISL)),
            osl=_length(lengths.osl, None if has_file else fixed(DEFAULT_OSL)),
            prompts=prompts,
            prefixes=settled("prefixes"),
            conversation=settled("conversation"),
            is_exact=settled("replies") == "exact" and lengths.max_tokens is None,
            objectives=None if of is None else of.objectives,
        )

    def files(self, *, prompts: bool = True) -> list[Path]:
        """Return the files the scenario reads: a trace, lengths, and prompts where wanted."""
        found = [self.arrivals.path] if isinstance(self.arrivals, Trace) else []
        for kind in self.kinds:
            found += [kind.prompts] if kind.has_file and prompts else []
            found += [kind.lengths.pairs.path] if kind.lengths.pairs else []
            found += [each.path for each in _distributions(kind) if each.path]
        return [Path(path) for path in dict.fromkeys(found)]

    def moved(self, move: Callable[[str], str]) -> Scenario:
        """Return the scenario with its files' paths changed."""
        changed = _moved(self, move)
        changed["classes"] = tuple(each.model_copy(update=_moved(each, move)) for each in self.classes)
        if isinstance(self.arrivals, Trace):
            changed["arrivals"] = self.arrivals.model_copy(update={"path": move(self.arrivals.path)})
        return self.model_copy(update={key: value for key, value in changed.items() if key in self.model_fields_set})


def _length(length: Distribution | str, auto: Distribution | None) -> Distribution | None:
    return auto if isinstance(length, str) else length


def _check(kind: Kind) -> None:
    """Refuse invalid combinations within one class.

    Raises:
        ValueError: There is one; worded as for a schema.
    """
    who = f"class {kind.name}: " if kind.name else ""
    conversation = kind.conversation
    if conversation is not None and conversation.turns == "auto" and not kind.has_file:
        raise ValueError(
            f"{who}conversation: turns is required, because {kind.prompts} prompts have no turns of their own"
        )


def _distributions(kind: Kind) -> Iterator[Distribution]:
    conversation = kind.conversation
    for each in (kind.isl, kind.osl, *((conversation.turns, conversation.think_s) if conversation else ())):
        if isinstance(each, Distribution):
            yield each


def _moved(of: Scenario | TrafficClass, move: Callable[[str], str]) -> dict[str, Any]:
    """Return the changes when files are moved."""
    changed: dict[str, Any] = {}
    if of.lengths is not None:
        update: dict[str, Any] = {
            name: value.moved(move)
            for name in ("isl", "osl")
            if isinstance(value := getattr(of.lengths, name), Distribution)
        }
        if of.lengths.pairs is not None:
            update["pairs"] = of.lengths.pairs.model_copy(update={"path": move(of.lengths.pairs.path)})
        changed["lengths"] = of.lengths.model_copy(update=update)
    if of.conversation is not None:
        conversation = of.conversation
        turns = conversation.turns if isinstance(conversation.turns, str) else conversation.turns.moved(move)
        changed["conversation"] = conversation.model_copy(
            update={"turns": turns, "think_s": conversation.think_s.moved(move)}
        )
    if of.prompts is not None and of.prompts not in GENERATED_PROMPTS:
        changed["prompts"] = move(of.prompts)
    return changed
