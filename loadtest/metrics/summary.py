"""The schema of `summary.json`: every figure with its unit. docs/reference/summary.md is generated from it."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import AliasChoices, Field

from engines.files import Document, Strict
from loadtest.results import Kind, ServerFacts, ValidityIssue, load_text
from loadtest.scenario import share_of

PERCENTILES_NOTE = (
    "exact, by linear interpolation between order statistics; inter-token latencies are pooled over all gaps of a "
    "level's successful requests, so that one stall among many tokens stays visible"
)
CONFIDENCE_NOTE = (
    "95 %, by bootstrap: over requests in a closed loop, over blocks of time in an open one and for rates; "
    "they say how far this run may be off for its length, not how runs differ"
)

Range: TypeAlias = tuple[float, float]


class Spread(Strict):
    """Statistics of one quantity, in its unit."""

    count: Annotated[int, Field(description="Number of values.")]
    mean: Annotated[float, Field(description="Arithmetic mean.")]
    p50: Annotated[float, Field(description="Median.")]
    p90: Annotated[float, Field(description="90th percentile.")]
    p95: Annotated[float, Field(description="95th percentile.")]
    p99: Annotated[float, Field(description="99th percentile.")]
    max: Annotated[float, Field(description="Largest value.")]
    p999: Annotated[float | None, Field(description="99.9th percentile.")] = None
    min: Annotated[float | None, Field(description="Smallest value.")] = None
    sd: Annotated[float | None, Field(description="Sample standard deviation; null for a single value.")] = None
    ci: Annotated[
        dict[str, Range] | None,
        Field(description="Confidence intervals by statistic (`mean`, `p50` ...); null where none was computed."),
    ] = None
    unsupported: Annotated[
        tuple[str, ...],
        Field(
            description="Percentiles for which the sample is too small: p99 needs 368 independent values, p99.9 3,688."
        ),
    ] = ()


PERCENTILES = {name: share for name in Spread.model_fields if (share := share_of(name)) is not None}


class BatchSpread(Strict):
    """Statistics of the number of decoding sequences."""

    mean: Annotated[float, Field(description="Mean; the client's count is weighted by time.")]
    p50: Annotated[float, Field(description="Median.")]
    p95: Annotated[float, Field(description="95th percentile.")]
    max: Annotated[float, Field(description="Maximum.")]


class Interval(Strict):
    """Prediction interval of a mean, with probability `share`."""

    share: Annotated[float, Field(description="Probability, 0 to 1.")]
    low: Annotated[float, Field(description="Lower end.")]
    mean: Annotated[float, Field(description="Predicted mean.")]
    high: Annotated[float, Field(description="Upper end.")]


class BatchPoint(Strict):
    """Duration of an iteration at one batch size, in seconds."""

    batch: Annotated[float, Field(description="Decoding sequences, mean of this bin.")]
    count: Annotated[float, Field(description="Number of gaps between tokens, or of the server's iterations.")]
    mean_s: Annotated[float, Field(description="Mean, engine seconds.")]
    p50_s: Annotated[float | None, Field(description="Median; null for the server, which reports only means.")] = None
    p95_s: Annotated[float | None, Field(description="95th percentile; null as above.")] = None


class BatchCurve(Strict):
    """Latency against the batch size at the same moment."""

    reconstructed: Annotated[
        list[BatchPoint],
        Field(description="From the records: each inter-token gap, by the number of streams active at its midpoint."),
    ]
    server: Annotated[
        list[BatchPoint],
        Field(description="From the server: iteration time between two samples, by the server's batch size."),
    ]
    disagreement_ratio: Annotated[
        float | None,
        Field(description="Mean relative difference of the two, weighted by iterations; null without both."),
    ] = None


class Steady(Strict):
    """What was excluded from a level before its figures were computed."""

    method: Annotated[str, Field(description="Method.")]
    warmup_s: Annotated[float, Field(description="Excluded at the start, engine seconds.")]
    cooldown_s: Annotated[float, Field(description="Excluded at the end, engine seconds.")]
    requests_cut: Annotated[int, Field(description="Measured requests excluded from latencies for this reason.")]
    growing: Annotated[
        bool, Field(description="Whether requests in flight grew to the end: the offered load exceeded the capacity.")
    ] = False


class Gpus(Strict):
    """The server's GPUs, means over the window; null for what was not reported."""

    power_w: Annotated[float | None, Field(description="Watts, all GPUs together.")] = None
    memory_bytes: Annotated[float | None, Field(description="Bytes in use, all GPUs together.")] = None
    busy_ratio: Annotated[float | None, Field(description="Share of time with a running kernel, mean over GPUs.")] = (
        None
    )


class Energy(Strict):
    """Energy of the GPUs over the window, all of them together; in engine time."""

    power_w: Annotated[float, Field(description="Mean watts.")]
    gpus: Annotated[int | None, Field(description="GPUs whose readings were found; null for a prediction.")] = None
    j_per_output_token: Annotated[float | None, Field(description="Joules per output token.")] = None
    j_per_token: Annotated[float | None, Field(description="Joules per token, prompts and replies together.")] = None
    j_per_request: Annotated[float | None, Field(description="Joules per request.")] = None
    method: Annotated[
        str, Field(description="Source of the watts: energy counter, mean of power readings, or power model.")
    ]
    power_range_w: Annotated[
        Range | None,
        Field(description="90 % interval of predicted watts, from the power model alone; null if measured."),
    ] = None


class Speculation(Strict):
    """Speculative decoding, as measured."""

    tokens_per_step: Annotated[
        float, Field(description="Mean tokens of a reply's decode step: one, and the accepted draft tokens.")
    ]
    acceptance: Annotated[
        tuple[float, ...],
        Field(description="Share of steps that accept the draft token at each position; empty if unknown."),
    ] = ()
    accepted_ratio: Annotated[
        float | None, Field(description="Share of draft tokens that were accepted; null if not reported.")
    ] = None
    source: Annotated[
        Literal["server", "responses"],
        Field(
            description=(
                "The server's counters or, where it has none, the tokens of each response after a reply's first, "
                "unless responses of more tokens took longer: those are merged, not speculation."
            )
        ),
    ]


class TokenPrices(Strict):
    """USD per million tokens by kind, which add up to what the GPUs cost."""

    input: Annotated[float | None, Field(description="Prompt tokens that were computed.")]
    cached_input: Annotated[
        float | None, Field(description="Prompt tokens found in the KV cache; null if there were none.")
    ]
    output: Annotated[float | None, Field(description="Output tokens.")]
    method: Annotated[str, Field(description="How the cost is split.")]


class Cost(Strict):
    """Cost of the server's GPUs over the window, idle time included; per engine hour."""

    usd_per_gpu_h: Annotated[float, Field(description="Price of one GPU for one hour.")]
    gpus: Annotated[int, Field(description="GPUs of the server.")]
    price: Annotated[str, Field(description="Source and age of the price.")]
    usd_per_million_output_tokens: Annotated[
        float, Field(description="All of the cost per million output tokens; prompts are in it.")
    ]
    usd_per_million_tokens: Annotated[
        float | None, Field(description="All of the cost per million tokens, prompts and replies together.")
    ]
    split: Annotated[TokenPrices | None, Field(description="By kind of token; null if refused.")] = None
    split_unknown: Annotated[str | None, Field(description="Why `split` is null.")] = None


class ClassSummary(Strict):
    """Figures of one class of a mix."""

    name: Annotated[str, Field(description="Name of the class.")]
    requests: Annotated[int, Field(description="Measured requests that ended, failed ones included.")]
    errors: Annotated[int, Field(description="How many of them failed.")]
    prompt_tokens: Annotated[float, Field(description="Prompt length, mean tokens.")]
    output_tokens: Annotated[float, Field(description="Reply length of successful requests, mean tokens.")]
    ttft_s: Annotated[Spread | None, Field(description="As for the level.")]
    itl_s: Annotated[Spread | None, Field(description="As for the level.")]
    tpot_s: Annotated[Spread | None, Field(description="As for the level.")]
    e2e_s: Annotated[Spread | None, Field(description="As for the level.")]
    goodput: Annotated[float | None, Field(description="Share of requests that met every limit of the objectives.")] = (
        None
    )


class LevelSummary(Strict):
    """One level's figures; durations in engine seconds, rates per engine second."""

    run: Annotated[str | None, Field(description="The run that the level belongs to, if there are several.")] = None
    concurrency: Annotated[int | None, Field(description="Users of a closed loop; null in an open one.")]
    rate_per_s: Annotated[
        float | None, Field(description="Requested rate, requests per second; null in a closed loop.")
    ] = None
    isl: Annotated[int, Field(description="Requested prompt length, tokens.")]
    osl: Annotated[int, Field(description="Requested reply length, tokens.")]
    complete: Annotated[bool, Field(description="Whether all requested requests were measured.")]
    requests: Annotated[int, Field(description="Measured requests that ended, failed ones included.")]
    errors: Annotated[int, Field(description="How many of them failed; latencies exclude these.")]
    errors_by_outcome: Annotated[dict[str, int], Field(description="Failed requests by outcome.")]
    incomplete: Annotated[
        int,
        Field(
            description=(
                "Measured requests that the end of the run cut short (`cancelled`, `lost`): not in `requests`, because "
                "they neither succeeded nor failed."
            )
        ),
    ] = 0
    ttft_s: Annotated[Spread | None, Field(description="Time to first token, from sending.")]
    itl_s: Annotated[
        Spread | None,
        Field(description="Inter-token latency: every gap between responses, pooled over requests."),
    ]
    tpot_s: Annotated[Spread | None, Field(description="Time per output token after the first, of each request.")]
    e2e_s: Annotated[Spread | None, Field(description="End-to-end latency: from sending to the end of the reply.")]
    window: Annotated[
        Literal["steady", "whole"],
        Field(description="Span of the rates and batch sizes: the full load, or the whole measurement."),
    ]
    window_s: Annotated[float, Field(description="Length of the window, after exclusions.")]
    output_tokens_per_s: Annotated[
        float | None, Field(description="Output tokens per second in the window, failed requests included.")
    ]
    requests_per_s: Annotated[
        float | None,
        Field(
            description="Requests per second in the window, each weighted by its share of time inside. While a queue "
            "grows, this is more than were completed and less than were sent; `output_tokens_per_s` is what was served."
        ),
    ]
    batch_size: Annotated[
        BatchSpread | None, Field(description="Decoding sequences, counted by the server; null if it reports none.")
    ]
    batch_size_client: Annotated[
        BatchSpread | None, Field(description="Requests between first and last token, from the records.")
    ]
    kv_blocks_used: Annotated[float | None, Field(description="Mean number of KV cache blocks in use; null as above.")]
    waiting: Annotated[
        float | None,
        Field(
            description=(
                "Mean number of requests at the server that are in no step, including its queue; null if not reported."
            )
        ),
    ]
    goodput: Annotated[
        float | None, Field(description="Share of measured requests that met every limit; null without objectives.")
    ] = None
    intervals: Annotated[
        dict[str, Interval] | None,
        Field(
            description="For a prediction by a calibration or an engine profile: intervals of the means of "
            "`tokens_per_s`, `itl_s`, `ttft_s`."
        ),
    ] = None
    ttft_scheduled_s: Annotated[
        Spread | None,
        Field(description="Time to first token, from the due time; null in a closed loop."),
    ] = None
    e2e_scheduled_s: Annotated[
        Spread | None, Field(description="End-to-end latency, from the due time; null as above.")
    ] = None
    ttst_s: Annotated[Spread | None, Field(description="Time from the first token to the second.")] = None
    normalized_s: Annotated[Spread | None, Field(description="End-to-end latency per token of the reply.")] = None
    queue_s: Annotated[Spread | None, Field(description="Time in the server's queue; null if not reported.")] = None
    input_tokens_per_s: Annotated[
        float | None, Field(description="Prompt tokens per second in the window, weighted as `requests_per_s`.")
    ] = None
    rates_ci: Annotated[
        dict[str, Range] | None,
        Field(
            description="Confidence intervals of `output_tokens_per_s`, `requests_per_s`; null if none was computed."
        ),
    ] = None
    goodput_ci: Annotated[
        Range | None, Field(description="Confidence interval of `goodput`, by Wilson's score; null as above.")
    ] = None
    errors_by_text: dict[str, int] = Field(
        default_factory=dict, description="Failed requests by error message; the ten most frequent."
    )
    bundled_tokens: Annotated[
        int, Field(description="Tokens that arrived in one response with the one before, and have no gap of their own.")
    ] = 0
    speculation: Annotated[
        Speculation | None, Field(description="Speculative decoding; null if no response had several tokens.")
    ] = None
    cached_ratio: Annotated[
        float | None, Field(description="Share of prompt tokens found in the server's cache; null if not reported.")
    ] = None
    kv_ratio: Annotated[float | None, Field(description="Mean share of the KV cache in use; null as above.")] = None
    gpus: Annotated[Gpus | None, Field(description="The GPUs; null if no metrics page reports them.")] = None
    energy: Annotated[
        Energy | None, Field(description="Watts and joules of the GPUs over the window; null if unknown.")
    ] = None
    energy_unknown: Annotated[str | None, Field(description="Why `energy` is null.")] = None
    cost: Annotated[Cost | None, Field(description="Cost of tokens; null without a price.")] = None
    steady: Annotated[
        Steady | None, Field(description="What was excluded; null if the load was not meant to reach a steady state.")
    ] = None
    batch_curve: Annotated[BatchCurve | None, Field(description="Latency by batch size; null without a gap.")] = None
    classes: Annotated[
        tuple[ClassSummary, ...], Field(description="Each class of a mix; empty if there is only one.")
    ] = ()

    @property
    def offered(self) -> float:
        """The offered load: users of a closed loop, requests per second of an open loop."""
        return self.concurrency if self.concurrency is not None else self.rate_per_s or 0.0

    @property
    def load(self) -> str:
        """The offered load as text."""
        return load_text(self.concurrency, self.rate_per_s)

    @property
    def felt_ttft_s(self) -> Spread | None:
        """Time to first token as the user experiences it: in an open loop from when the request was due."""
        return self.ttft_scheduled_s or self.ttft_s

    @property
    def felt_e2e_s(self) -> Spread | None:
        """End-to-end latency likewise."""
        return self.e2e_scheduled_s or self.e2e_s

    @property
    def errors_ratio(self) -> float | None:
        """Share of the measured requests that failed; None without requests."""
        return self.errors / self.requests if self.requests else None

    def figure(self, name: str) -> float | None:
        """Return one figure by name, such as `itl_s p99` or `goodput`; None if there is none.

        Time to first token and end-to-end latency are as the user experiences them.
        """
        quantity, _, statistic = name.partition(" ")
        found = {"ttft_s": self.felt_ttft_s, "e2e_s": self.felt_e2e_s}.get(quantity) or getattr(self, quantity)
        value = getattr(found, statistic) if statistic and found is not None else found
        return value if isinstance(value, int | float) else None


class RunFacts(Strict):
    """One run that the summary covers."""

    name: Annotated[str, Field(description="The run's folder, or its path if two have the same name.")]
    label: Annotated[str, Field(description="Label of its figures.")]
    time_scale: Annotated[float, Field(description="Wall seconds per engine second.")]
    scenario: Annotated[str, Field(description="The scenario's name.")]
    server: Annotated[ServerFacts, Field(description="Facts reported by the server.")]
    interrupted: Annotated[str | None, Field(description="Why it ended early; null if it was complete.")]


class Repeat(Strict):
    """One figure of one level over several runs of the same scenario."""

    load: Annotated[str, Field(description="The level's load as text.")]
    isl: Annotated[int, Field(description="Requested prompt length, tokens.")]
    osl: Annotated[int, Field(description="Requested reply length, tokens.")]
    quantity: Annotated[str, Field(description="For example `itl_s p50` or `output_tokens_per_s`.")]
    runs: Annotated[int, Field(description="Number of runs.")]
    mean: Annotated[float, Field(description="Mean over runs.")]
    min: Annotated[float, Field(description="Minimum.")]
    max: Annotated[float, Field(description="Maximum.")]
    sd: Annotated[float, Field(description="Standard deviation between runs.")]


class Summary(Document):
    """`summary.json`: the figures of one run, or of several of one kind."""

    kind: Annotated[Kind, Field(description="measured, emulated or predicted.")]
    label: Annotated[str, Field(description="Label of every figure.")]
    time_scale: Annotated[float | None, Field(description="Wall seconds per engine second; null if the runs differ.")]
    valid: Annotated[bool, Field(description="Whether all validity checks passed.")]
    validity_issues: Annotated[
        list[ValidityIssue],
        Field(description="Validity issues.", validation_alias=AliasChoices("validity_issues", "doubts")),
    ]
    percentiles: Annotated[str, Field(description="How percentiles are computed.")] = PERCENTILES_NOTE
    confidence: Annotated[str, Field(description="How confidence intervals are computed.")] = CONFIDENCE_NOTE
    runs: Annotated[list[RunFacts], Field(description="The runs.")]
    levels: Annotated[list[LevelSummary], Field(description="Their levels, one run after another.")]
    repeats: Annotated[
        tuple[Repeat, ...], Field(description="Spread between runs of one scenario; empty for one run.")
    ] = ()

    @property
    def incomplete_note(self) -> str | None:
        """The requests that the end of a run cut short, as a sentence; None if there are none."""
        count = sum(level.incomplete for level in self.levels)
        if not count:
            return None
        subject = f"{count:,} requests were" if count > 1 else "1 request was"
        return f"{subject} in flight when the run was cut short, and counted neither as served nor as failed"
