"""A step-time source with each part of a step's cost multiplied by a ratio, for what-if questions."""

from __future__ import annotations

from operator import mul

from engines.steptime.shape import DecodeLine, StepCost, StepShape, StepTime, in_order


class Scaled:
    """Another source's parts, each multiplied by its ratio.

    The part that grows with the contexts of decoding sequences is reading their cache, so the slope takes `kv_read_s`'s
    ratio.
    """

    def __init__(self, source: StepTime, ratios: StepCost) -> None:
        self.source = source
        self.ratios = ratios
        self._rest: dict[int, tuple[float, float]] = {}

    def cost(self, shape: StepShape) -> StepCost:
        """Return the seconds of one iteration by cause."""
        return StepCost(*map(mul, self.source.cost(shape), self.ratios))

    def seconds(self, shape: StepShape) -> float:
        """Return the seconds of one iteration."""
        return in_order(map(mul, self.source.cost(shape), self.ratios))

    def decode_line(self, decode_sequences: int, decode_context_tokens: int) -> DecodeLine:
        """Return the source's line, with its slope multiplied by the cache's ratio."""
        rest_s, scaled_s = self._without_kv(decode_sequences)
        line = self.source.decode_line(decode_sequences, decode_context_tokens)
        kv = self.ratios.kv_read_s
        return DecodeLine(
            scaled_s + kv * (line.base_s - rest_s), kv * line.per_context_token_s, line.valid_to_context_tokens
        )

    def _without_kv(self, sequences: int) -> tuple[float, float]:
        found = self._rest.get(sequences)
        if found is None:
            parts = self.source.cost(StepShape(decode_sequences=sequences))._replace(kv_read_s=0.0)
            scaled_s = in_order(map(mul, parts, self.ratios))
            found = self._rest[sequences] = (in_order(parts), scaled_s)
        return found


def uniform(ratio: float) -> StepCost:
    """Return ratios that lengthen every part equally."""
    return StepCost._make([ratio] * len(StepCost._fields))


def scaled(source: StepTime, ratios: StepCost) -> StepTime:
    """Return a scaled source, or the source itself if all ratios are 1."""
    return source if all(ratio == 1.0 for ratio in ratios) else Scaled(source, ratios)
