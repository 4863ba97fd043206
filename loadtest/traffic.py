"""One level's closed loop, without sockets or clocks of its own: who sends what next, and when the level is over."""

from __future__ import annotations

from dataclasses import dataclass, field

from engines.files import Strict
from loadtest.records import Phase
from loadtest.scenario import Protocol, Scenario


class GeneratorPlan(Strict):
    """What the load generator's process is told.

    Attributes:
        prompts: File of prompts.
        records: File to append records to.
        began_monotonic_s: The run's zero on the machine's monotonic clock.
    """

    host: str
    port: int
    protocol: Protocol
    scenario: Scenario
    prompts: str
    records: str
    began_monotonic_s: float


@dataclass(slots=True)
class Turn:
    """One request a user is to send."""

    id: int
    phase: Phase
    output_tokens: int


@dataclass(slots=True)
class ClosedLoop:
    """The requests of one level, given out one at a time.

    Every user first warms up; the first warm-up replies have staggered lengths unless told otherwise, so that the
    users are spread over the whole of a request when measuring begins instead of all starting at once. Measuring
    begins when every user has warmed up. Once all measured requests are under way, users that become free send
    requests that are not measured: the load stays what it was until the last measured one has ended.

    Args:
        first_id: Id of the first request.
        window_s: Requests sent within this time of the first measured one are measured too, beyond `requests`.
        warmup_requests: Of each user; with 0, the first wave is measured with the others.
        staggered: Whether the first warm-up replies have staggered lengths; if not, all users begin together.
    """

    concurrency: int
    output_tokens: int
    requests: int
    warmup_requests: int
    first_id: int
    window_s: float = 0.0
    staggered: bool = True
    measure_s: float | None = None
    end_s: float | None = None
    next_id: int = 0
    _warmed: set[int] = field(default_factory=set)
    _sent: dict[int, int] = field(default_factory=dict)
    _measured: int = 0
    _ended: int = 0

    def __post_init__(self) -> None:
        """Start at the first id."""
        self.next_id = self.first_id

    @property
    def is_over(self) -> bool:
        """Whether all measured requests have ended."""
        return self.end_s is not None

    def next_turn(self, user: int, now_s: float) -> Turn:
        """Return what a free user sends now."""
        sent = self._sent.get(user, 0)
        self._sent[user] = sent + 1
        if sent >= self.warmup_requests:
            self._warmed.add(user)
        if self.measure_s is None and (not self.warmup_requests or len(self._warmed) == self.concurrency):
            self.measure_s = now_s
        phase: Phase = "warmup"
        if self.measure_s is not None:
            phase = "measure" if self._measured < self.requests or self._in_window(now_s) else "fill"
            self._measured += phase == "measure"
            self._end_if_done(now_s)
        turn = Turn(self.next_id, phase, self._length(user, sent))
        self.next_id += 1
        return turn

    def note_end(self, turn: Turn, now_s: float) -> None:
        """Take a request as ended, well or not."""
        if turn.phase == "measure":
            self._ended += 1
            self._end_if_done(now_s)

    def _end_if_done(self, now_s: float) -> None:
        """End the level once all that was sent to be measured has ended, and nothing more will be."""
        if self._ended == self._measured >= self.requests and not self._in_window(now_s):
            self.end_s = self.end_s if self.end_s is not None else now_s

    def _in_window(self, now_s: float) -> bool:
        return self.measure_s is not None and now_s < self.measure_s + self.window_s

    def _length(self, user: int, sent: int) -> int:
        if sent or not self.warmup_requests or not self.staggered:
            return self.output_tokens
        return max(1, round(self.output_tokens * (user + 1) / self.concurrency))
