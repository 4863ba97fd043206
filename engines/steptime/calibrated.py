"""Step time fitted to a deployment: another source's parts, each times a factor, plus host times."""

from __future__ import annotations

import math
from operator import mul
from typing import NamedTuple

from engines.spec import Factors
from engines.steptime.shape import DecodeLine, StepCost, StepShape, StepTime, in_order

_HOST = StepCost._fields.index("host_s")
FULL_GPU_SEQUENCES = 64  # sequences whose attention fills any GPU, split along the context or not


class _Line(NamedTuple):
    """Seconds as a line in the sum of contexts, valid up to a context."""

    base_s: float
    per_token_s: float
    valid_to_tokens: float


class Calibrated:
    """A step-time source times fitted factors."""

    def __init__(self, source: StepTime, factors: Factors) -> None:
        self.source = source
        self.factors = factors
        self._ratios = ratios_of(factors)
        self._rest: dict[int, tuple[float, float]] = {}
        self._empty: dict[int, float] = {}

    @property
    def derived(self) -> list[str]:
        """What the source derived because there are no measured kernels."""
        return list(getattr(self.source, "derived", ()))

    def cost(self, shape: StepShape) -> StepCost:
        """Return the seconds of one iteration by cause."""
        fitted = list(map(mul, self.parts(shape), self._ratios))
        fitted[_HOST] += self._added_s(shape)
        return StepCost(*fitted)

    def _added_s(self, shape: StepShape) -> float:
        """Return what the factors add to an iteration, as opposed to what they multiply."""
        sequences = shape.decode_sequences + shape.prefill_sequences
        per_prompt_s = shape.prefill_sequences * self.factors.prompt_s
        return self.factors.iteration_s + sequences * self.factors.sequence_s + per_prompt_s

    def parts(self, shape: StepShape) -> StepCost:
        """Return the parts before their factors: the source's own, with the cache read in waves if so modelled."""
        parts = self.source.cost(shape)
        if not shape.decode_sequences:
            return parts
        weights_s, gemm_s, kv_read_s, *others = parts
        return StepCost(weights_s, gemm_s, self.kv_read_s(shape, kv_read_s), *others)

    def kv_read_s(self, shape: StepShape, source_s: float) -> float:
        """Return the time to read the cache of decoding sequences, before its factor.

        Args:
            source_s: The source's own time, which counts if the cache is not read in waves.
        """
        kv_read_s = source_s
        if self.factors.wave_sequences > 1:
            line = self._waves(shape.decode_sequences, shape.decode_context_tokens)
            kv_read_s = line.base_s + line.per_token_s * shape.decode_context_tokens
        return kv_read_s * self.factors.mixed_kv_reads if shape.prefill_sequences else kv_read_s

    def seconds(self, shape: StepShape) -> float:
        """Return the seconds of one iteration."""
        return in_order(map(mul, self.parts(shape), self._ratios)) + self._added_s(shape)

    def decode_line(self, decode_sequences: int, decode_context_tokens: int) -> DecodeLine:
        """Return the source's line; its slope and its constant part are each scaled by their own factor."""
        source_s, fitted_s = self._without_kv(decode_sequences)
        line = self.kv_line(decode_sequences, decode_context_tokens, source_s)
        kv = self.factors.kv_ratio
        return DecodeLine(fitted_s + kv * line.base_s, kv * line.per_token_s, line.valid_to_tokens)

    def kv_line(self, sequences: int, context_tokens: int, without_kv_s: float | None = None) -> _Line:
        """Return the line of the time to read the cache, before its factor.

        Args:
            without_kv_s: Cost of the source's decode step without it, if known.
        """
        if self.factors.wave_sequences > 1:
            return self._waves(sequences, context_tokens)
        line = self.source.decode_line(sequences, context_tokens)
        rest_s = self._without_kv(sequences)[0] if without_kv_s is None else without_kv_s
        return _Line(line.base_s - rest_s, line.per_context_token_s, line.valid_to_context_tokens)

    def _waves(self, sequences: int, context_tokens: int) -> _Line:
        """Return the time to read the cache in waves, each at the source's speed for a full GPU.

        The time with an empty cache is the kernel's launch; waves lengthen only the part that grows with the context.
        """
        full = FULL_GPU_SEQUENCES
        line = self.source.decode_line(full, context_tokens * full // sequences)
        empty_s = self._kv_of_empty_s(full)
        rest_s = self._without_kv(full)[0]
        in_waves = self._full_sequences(sequences) / full * self.factors.wave_reads
        base_s = self._kv_of_empty_s(sequences) + in_waves * (line.base_s - rest_s - empty_s)
        slope = in_waves * line.per_context_token_s * full / sequences
        return _Line(base_s, slope, line.valid_to_context_tokens * sequences / full)

    def _full_sequences(self, sequences: int) -> float:
        """Return the sequences that a full GPU would read in the time of a step that reads in waves.

        As long as all thread blocks fit on the GPU at once, the launcher doubles their threads where that fills it
        better, and a multiprocessor holds half as many. With a few more, they run in whole rounds.
        """
        wave, blocks = self.factors.wave_sequences, self.factors.wave_blocks
        if sequences > wave * blocks:
            return sequences + self.factors.wave_tail * wave
        doublings = math.ceil(wave * blocks / sequences).bit_length() - 1
        round_sequences = wave * max(1, blocks >> doublings)
        rounds, last = divmod(sequences / round_sequences, 1.0)
        return round_sequences * (rounds + (max(last, self.factors.wave_alone) if last else 0.0))

    def _kv_of_empty_s(self, sequences: int) -> float:
        found = self._empty.get(sequences)
        if found is None:
            found = self._empty[sequences] = self.source.cost(StepShape(decode_sequences=sequences)).kv_read_s
        return found

    def _without_kv(self, sequences: int) -> tuple[float, float]:
        """Return the cost of a decode step without reading the cache: by the source, and fitted."""
        found = self._rest.get(sequences)
        if found is None:
            parts = self.source.cost(StepShape(decode_sequences=sequences))._replace(kv_read_s=0.0)
            added_s = self.factors.iteration_s + sequences * self.factors.sequence_s
            fitted_s = in_order(map(mul, parts, self._ratios)) + added_s
            found = self._rest[sequences] = (in_order(parts), fitted_s)
        return found


def ratios_of(factors: Factors) -> StepCost:
    """Return the factor on each part of a step's cost; 1 for parts without a factor."""
    return StepCost(
        weights_s=factors.weights_ratio,
        gemm_s=factors.gemm_ratio,
        kv_read_s=factors.kv_ratio,
        attention_s=factors.attention_ratio,
        activations_s=factors.gemm_ratio,
        communication_s=1.0,
        launch_s=1.0,
        host_s=1.0,
        sampling_s=1.0,
        onboard_s=1.0,
        draft_s=1.0,
    )
