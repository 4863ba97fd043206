"""The implementation of `compare-models`: bound and prediction of each model at batch size 1, and the result."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal, get_args

from rich.table import Table

from engines.console import command_line, say, show
from engines.errors import UserError
from engines.files import Document, Strict, made_by, to_json
from engines.spec import (
    GIB,
    PRECISIONS,
    GpuSpec,
    ModelSpec,
    PlacedModel,
    Precision,
    gpu_named,
    model_named,
    precision_named,
    require_possible,
    verdict,
)
from engines.steptime import Roofline, StepShape
from engines.terminal_tables import table_console

FP16 = PRECISIONS["fp16"]
MODELS_FILE = "engines/spec/data/models.yaml"

Kind = Literal["data sheet", "computed", "floor", "predicted"]
Judgement = Literal["reached", "within the bound", "impossible: above what memory bandwidth allows"]


class Figure(Strict):
    """Kind and source of a figure."""

    kind: Kind
    source: str


class ComparedRow(Strict):
    """One model at one precision, decoding one sequence.

    Attributes:
        weights_fp16_bytes: Size of all weights at FP16, independent of the row's precision.
        context_window_tokens: Longest sequence according to the model's config (`max_position_embeddings`).
        context_tokens: Tokens in the KV cache at the decode step that is evaluated.
        read_bytes_per_step: All weights (of the embedding table only one row, not counted) plus the context's KV cache.
        tokens_per_s_bound: Upper bound from peak memory bandwidth. See the function `tokens_per_s_bound`.
        tokens_per_s_predicted: From the roofline's step time.
        sources: Kind and source of each figure above, by name.
    """

    model: str
    licence: str
    parameters: int
    weights_fp16_bytes: int
    context_window_tokens: int
    precision: str
    kv_format: str
    context_tokens: int
    read_bytes_per_step: int
    tokens_per_s_bound: float
    tokens_per_s_predicted: float
    claim: Judgement
    sources: dict[str, Figure]


class ModelVerdict(Strict):
    """The result of the claim for one model.

    Attributes:
        possible_in_fp16: The FP16 bound is at or above the claim.
        reached_by: Precisions of the table whose prediction reaches the claim.
        only_allowed_for: Precisions whose bound allows the claim but whose prediction is below it.
    """

    model: str
    possible_in_fp16: bool
    tokens_per_s_fp16_bound: float
    reached_by: list[str]
    only_allowed_for: list[str]


class ModelComparison(Document):
    """All rows of the table, the claim and its result for each model."""

    gpu: str
    bandwidth_bytes_per_s: float
    bandwidth: Figure
    batch_sequences: int = 1
    claim_tokens_per_s: float
    rows: list[ComparedRow]
    answers: list[ModelVerdict]


def tokens_per_s_bound(*, read_bytes_per_step: int, bandwidth_bytes_per_s: float) -> float:
    """Return an upper bound on the decode rate of one sequence: bandwidth / bytes read per token.

    The bound holds for one token per step (speculative decoding yields more per read) and for weights much larger than
    the GPU's L2 cache, which is true of every model with billions of parameters.

    >>> round(tokens_per_s_bound(read_bytes_per_step=16_000_000_000, bandwidth_bytes_per_s=2.0e12))
    125
    """
    return bandwidth_bytes_per_s / read_bytes_per_step


def judgement_of(claim_tokens_per_s: float, *, predicted: float, bound: float) -> Judgement:
    """Return the result for a claimed rate, given the predicted rate and the bound.

    >>> judgement_of(150, predicted=90, bound=130)
    'impossible: above what memory bandwidth allows'
    """
    if claim_tokens_per_s > bound:
        return "impossible: above what memory bandwidth allows"
    return "reached" if predicted >= claim_tokens_per_s else "within the bound"


def precisions_for(model: ModelSpec, gpu: GpuSpec, requested: tuple[str, ...]) -> list[Precision]:
    """Return the requested precisions without duplicates; by default, FP16 and all others that the GPU supports.

    Raises:
        UserError: A precision is unknown, or impossible on this GPU.
    """
    names = [word.strip() for words in requested for word in words.split(",")]
    chosen = [precision_named(name) for name in names if name]
    for precision in chosen:
        require_possible(precision, gpu, model.family)
    others = [one for one in PRECISIONS.values() if verdict(one, gpu, model.family).status != "impossible"]
    return list(dict.fromkeys(chosen or [FP16, *others]))


def compared_row(
    model: ModelSpec, gpu: GpuSpec, precision: Precision, *, context_tokens: int, claim_tokens_per_s: float
) -> ComparedRow:
    """Return the row of one model at one precision.

    Raises:
        UserError: The context is longer than the model's context window.
    """
    if context_tokens > model.max_position_embeddings:
        raise UserError(
            f"--isl {context_tokens}: {model.name} accepts at most {model.max_position_embeddings} tokens",
            hint=f"--isl {model.max_position_embeddings}, or omit {model.name}",
        )
    kv_format = precision.default_kv
    read_bytes = model.read_bytes_per_step(precision) + context_tokens * model.kv_bytes_per_token(kv_format)
    bound = tokens_per_s_bound(read_bytes_per_step=read_bytes, bandwidth_bytes_per_s=gpu.bandwidth_bytes_per_s)
    step = StepShape(decode_sequences=1, decode_context_tokens=context_tokens)
    predicted = 1 / Roofline(PlacedModel(model, gpu, precision.name, kv_format)).seconds(step)
    return ComparedRow(
        model=model.name,
        licence=model.licence or "unknown",
        parameters=model.parameters,
        weights_fp16_bytes=model.weights_bytes(FP16),
        context_window_tokens=model.max_position_embeddings,
        precision=precision.name,
        kv_format=kv_format,
        context_tokens=context_tokens,
        read_bytes_per_step=read_bytes,
        tokens_per_s_bound=bound,
        tokens_per_s_predicted=predicted,
        claim=judgement_of(claim_tokens_per_s, predicted=predicted, bound=bound),
        sources=_figures(model, gpu),
    )


def _figures(model: ModelSpec, gpu: GpuSpec) -> dict[str, Figure]:
    config = f"{model.source} ({MODELS_FILE})"
    return {
        "licence": Figure(kind="data sheet", source=f"licence of {model.hugging_face_id} ({MODELS_FILE})"),
        "context_window_tokens": Figure(kind="data sheet", source=f"max_position_embeddings, {config}"),
        "parameters": Figure(kind="computed", source=f"computed: from the geometry, {config}"),
        "weights_fp16_bytes": Figure(kind="computed", source="computed: 2 bytes for each parameter"),
        "read_bytes_per_step": Figure(
            kind="computed", source="computed: all weights except the embedding, plus keys and values of the context"
        ),
        "tokens_per_s_bound": Figure(
            kind="floor", source=f"computed: peak bandwidth of {gpu.name} / read_bytes_per_step"
        ),
        "tokens_per_s_predicted": Figure(
            kind="predicted",
            source="computed: 1 / roofline step time, efficiencies fitted to NVIDIA's published TensorRT-LLM "
            "timings of Mistral 7B (engines/steptime/roofline.py); not measured here",
        ),
    }


def answer_of(rows: list[ComparedRow], fp16: ComparedRow) -> ModelVerdict:
    """Return the claim's result for one model.

    Args:
        fp16: The model's row at FP16, which may not be in the table.
    """
    return ModelVerdict(
        model=fp16.model,
        possible_in_fp16=not fp16.claim.startswith("impossible"),
        tokens_per_s_fp16_bound=fp16.tokens_per_s_bound,
        reached_by=[row.precision for row in rows if row.claim == "reached"],
        only_allowed_for=[row.precision for row in rows if row.claim == "within the bound"],
    )


def comparison_of(
    models: list[ModelSpec],
    gpu: GpuSpec,
    *,
    precisions: tuple[str, ...] = (),
    context_tokens: int,
    claim_tokens_per_s: float,
) -> ModelComparison:
    """Compare models on a GPU, at the given precisions or at every possible one.

    Raises:
        UserError: A precision is unknown or impossible, the context is too long, or the claim is not a positive rate.
    """
    if not (math.isfinite(claim_tokens_per_s) and claim_tokens_per_s > 0):
        raise UserError(f"--claim {claim_tokens_per_s}: expected a rate above 0 tokens/s", hint="--claim 150")
    row_of = partial(compared_row, context_tokens=context_tokens, claim_tokens_per_s=claim_tokens_per_s)
    rows: list[ComparedRow] = []
    answers: list[ModelVerdict] = []
    for model in models:
        own = [row_of(model, gpu, one) for one in precisions_for(model, gpu, precisions)]
        rows += own
        answers.append(answer_of(own, row_of(model, gpu, FP16)))
    return ModelComparison(
        made_by=made_by(command_line("compare-models")),
        gpu=gpu.name,
        bandwidth_bytes_per_s=gpu.bandwidth_bytes_per_s,
        bandwidth=Figure(kind="data sheet", source=f"{gpu.source} (engines/spec/data/gpus.yaml)"),
        claim_tokens_per_s=claim_tokens_per_s,
        rows=rows,
        answers=answers,
    )


def run(**flags: Any) -> None:
    """Compare models at batch size 1 on one GPU, and check a claimed rate of tokens per second."""
    models = {model.name: model for model in map(model_named, flags["models"])}
    comparison = comparison_of(
        list(models.values()),
        gpu_named(flags["gpu"]),
        precisions=flags["precisions"],
        context_tokens=flags["context_tokens"],
        claim_tokens_per_s=flags["claim_tokens_per_s"],
    )
    if flags["as_json"]:
        show(to_json(comparison).rstrip())
        return
    _show_table(comparison)
    _show_answers(comparison)
    _show_sources(comparison)


def _show_table(comparison: ModelComparison) -> None:
    context = comparison.rows[0].context_tokens
    table = Table(title=f"batch 1 on {comparison.gpu}, {context:,} tokens of context", title_justify="left")
    table.add_column("model\nlicence")
    for heading in ("para-\nmeters", "FP16\nGiB", "window,\ntokens"):
        table.add_column(heading, justify="right")
    table.add_column("precision")
    for heading in ("predicted\ntokens/s", "bound,\ntokens/s"):
        table.add_column(heading, justify="right")
    table.add_column(f"claim of\n{comparison.claim_tokens_per_s:g} tokens/s")
    before = ""
    for row in comparison.rows:
        if row.model != before:
            table.add_section()
        table.add_row(*(_model_cells(row) if row.model != before else [""] * 4), *_rate_cells(row))
        before = row.model
    table_console().print(table)
    say("bound: the maximum that peak memory bandwidth allows at one token per read of the weights")
    say("predicted: from the roofline's step time, not measured; reached: by prediction; impossible: above the bound")


def _model_cells(row: ComparedRow) -> list[str]:
    return [
        f"{row.model}\n{row.licence}",
        f"{row.parameters / 1e9:.2f}B",
        f"{row.weights_fp16_bytes / GIB:.2f}",
        f"{row.context_window_tokens:,}",
    ]


def _rate_cells(row: ComparedRow) -> list[str]:
    return [
        row.precision,
        f"{row.tokens_per_s_predicted:.1f}",
        f"{row.tokens_per_s_bound:.1f}",
        row.claim.partition(":")[0],
    ]


def _show_answers(comparison: ModelComparison) -> None:
    claim = f"{comparison.claim_tokens_per_s:g} tokens/s at batch 1 on {comparison.gpu} in FP16"
    parts = []
    for word, possible in (("impossible", False), ("possible", True)):
        alike = [one for one in comparison.answers if one.possible_in_fp16 is possible]
        if alike:
            named = ", ".join(f"{one.model} ({one.tokens_per_s_fp16_bound:.1f} at most)" for one in alike)
            parts.append(f"physically {word} for {named}")
    say(f"{claim} is {'; it is '.join(parts)}.")
    for one in comparison.answers:
        reached = ", ".join(one.reached_by) or "none of these precisions"
        allowed = ", ".join(one.only_allowed_for) or "none"
        say(f"{one.model}: predicted to reach it: {reached}; allowed by the bound, not predicted to: {allowed}")
    say("The bound assumes one token per step; it does not apply to speculative decoding or batch sizes above 1.")


def _show_sources(comparison: ModelComparison) -> None:
    say("\nsources:")
    bandwidth = f"{comparison.gpu}, bandwidth {comparison.bandwidth_bytes_per_s / 1e12:g} TB/s"
    sourced = [(bandwidth, comparison.bandwidth)]
    for row in comparison.rows:
        sourced += [(_subject(row.model, name, figure), figure) for name, figure in row.sources.items()]
    kinds = get_args(Kind)
    for subject, figure in sorted(dict(sourced).items(), key=lambda pair: kinds.index(pair[1].kind)):
        say(f"  {figure.kind:<10}  {subject}: {figure.source.removeprefix('computed: ')}")


def _subject(model: str, name: str, figure: Figure) -> str:
    of_one_model = figure.kind == "data sheet" or name == "parameters"
    return f"{model}, {name}" if of_one_model else name
