"""Step time with speculation: the target's verification of every draft token, and the passes that draft them.

The target computes all tokens of a sequence's step at once: its weights and its cache are read once, while products and
logits grow with the tokens. The draft model's first pass of a step takes in what the last step accepted, each further
pass one token; it also computes every prompt.
"""

from __future__ import annotations

from dataclasses import replace

from engines.spec import DraftModel, Factors, PlacedModel
from engines.steptime.calibrated import Calibrated
from engines.steptime.roofline import Roofline
from engines.steptime.shape import DecodeLine, StepCost, StepShape, StepTime

DRAFT_PRECISION = "bf16"  # as published heads and small drafts are


class Drafting:
    """The passes of a draft model in one iteration, from its data sheet: no kernels of one layer were measured.

    Args:
        target: The model that verifies, on its GPUs.
        passes: Passes in each iteration.
        factors: Ratios of the deployment; additions to each iteration are the target's own.
    """

    def __init__(
        self,
        draft: DraftModel,
        target: PlacedModel,
        *,
        passes: int,
        factors: Factors,
    ) -> None:
        placed = replace(target, model=draft, precision=DRAFT_PRECISION)
        ratios = factors.model_copy(update={"iteration_s": 0.0, "sequence_s": 0.0, "prompt_s": 0.0})

        def priced(step_tokens: int) -> StepTime:
            return Calibrated(Roofline(placed, step_tokens=step_tokens), ratios)

        self._further = passes - 1
        self._first, self._next = priced(passes + 1), priced(1)

    def cost(self, shape: StepShape) -> StepCost:
        """Return the cost of all passes in an iteration, by cause."""
        first = self._first.cost(shape)
        if not self._further:
            return first
        later = self._next.cost(
            StepShape(shape.decode_sequences + shape.prefill_sequences, shape.decode_context_tokens)
        )
        return StepCost._make([one + self._further * each for one, each in zip(first, later, strict=True)])


class Speculative:
    """A target that verifies drafts, with what drafts them.

    Args:
        target: Step time of the target, built for one token and its draft for each decoding sequence.
        drafting: Passes of the draft model; None: n-grams, which need no model.
        added_s: Added to each iteration.
        prompt_s: Added to each iteration with prompts.
    """

    def __init__(self, target: StepTime, drafting: Drafting | None, *, added_s: float, prompt_s: float = 0.0) -> None:
        self.target = target
        self.drafting = drafting
        self._added_s = added_s
        self._prompt_s = prompt_s
        self._drafts: dict[int, tuple[float, float]] = {}

    @property
    def derived(self) -> list[str]:
        """What the target's source derived because there are no measured kernels."""
        return list(getattr(self.target, "derived", ()))

    def cost(self, shape: StepShape) -> StepCost:
        """Return the seconds of one iteration by cause; the draft's cache is read with the target's."""
        target = self.target.cost(shape)
        draft = StepCost() if self.drafting is None else self.drafting.cost(shape)
        drafted_s = draft.seconds - draft.kv_read_s
        return target._replace(kv_read_s=target.kv_read_s + draft.kv_read_s, draft_s=drafted_s + self._added_of(shape))

    def seconds(self, shape: StepShape) -> float:
        """Return the seconds of one iteration."""
        draft_s = 0.0 if self.drafting is None else self.drafting.cost(shape).seconds
        return self.target.seconds(shape) + draft_s + self._added_of(shape)

    def _added_of(self, shape: StepShape) -> float:
        return self._added_s + (self._prompt_s if shape.prefill_sequences else 0.0)

    def decode_line(self, decode_sequences: int, decode_context_tokens: int) -> DecodeLine:
        """Return the target's line with the draft's, which is linear in the context everywhere."""
        line = self.target.decode_line(decode_sequences, decode_context_tokens)
        base_s, slope_s = self._draft_line(decode_sequences)
        return DecodeLine(
            line.base_s + base_s + self._added_s, line.per_context_token_s + slope_s, line.valid_to_context_tokens
        )

    def _draft_line(self, sequences: int) -> tuple[float, float]:
        if self.drafting is None:
            return 0.0, 0.0
        found = self._drafts.get(sequences)
        if found is None:
            empty_s = self.drafting.cost(StepShape(sequences)).seconds
            one_s = self.drafting.cost(StepShape(sequences, sequences)).seconds
            found = self._drafts[sequences] = (empty_s, (one_s - empty_s) / sequences)
        return found
