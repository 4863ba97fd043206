"""What a load test asks for: arrivals, lengths, warm-up, limits of trust."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from engines.errors import UserError
from engines.files import Strict, read_yaml
from loadtest.arrivals import Arrivals

Protocol = Literal["triton-http", "triton-grpc", "openai-chat", "openai-completions"]
PromptSource = Literal["chat", "random"]


class Lengths(Strict):
    """Tokens of prompt and reply: fixed for every request."""

    isl: Annotated[int, Field(ge=1, description="Prompt length in tokens.")] = 256
    osl: Annotated[int, Field(ge=1, description="Reply length in tokens.")] = 64


class Trust(Strict):
    """When a run's figures are not to be believed; see docs/measurements.md for where the limits come from.

    Attributes:
        arrivals_late_s: p99 of how late an open loop's requests were sent, in engine seconds.
        clocks_apart_s: How exactly each worker's clock must be known, its drift over a level included.
    """

    arrivals_late_s: Annotated[float, Field(gt=0)] = 0.02
    clocks_apart_s: Annotated[float, Field(gt=0)] = 0.005
    server_late_ratio: Annotated[float, Field(gt=0, description="Emulator lateness p99 over its mean step.")] = 0.5
    generator_late_ratio: Annotated[
        float, Field(gt=0, description="p99 of the generator's own timers over an ITL.")
    ] = 0.5


class Scenario(Strict):
    """A closed-loop sweep: at each level so many users, each sending its next request when the last has ended.

    Attributes:
        rate_per_s: Instead of users, requests a second at each level: a Poisson process of `duration_s`, drawn from the
            seed and never slowed by the server.
        arrivals: Instead of either, one level of any other open-loop process, or of a trace with its own lengths.
        duration_s: How long requests are sent, where there is a rate.
        warmup_ratio: The first part of that time, not measured.
        requests_per_user: At least so many requests are measured for each user.
        window_s: What is sent within this time of the first measured request is measured too.
        concurrency: Users at each level, in the order they are run.
        requests: Requests measured at each level; users that find none left keep the load up unmeasured.
        warmup_requests: Requests of each user before its level's measurement.
        start: How the users of a level begin: spread over the length of a request, or all together.
        prompts: `chat`: real chat prompts cut to the length; `random`: ids from the seed.
        model: What to ask for: of Triton, `tensorrt_llm` takes tokens, `ensemble` and `tensorrt_llm_bls` text; of an
            OpenAI server, any name it lists.
        level_timeout_s: Wall seconds after which a level is ended with what it has.
        request_timeout_s: Wall seconds without a byte after which a request has failed.
        reply_timeout_s: Wall seconds from sending after which a reply that has not ended has failed, silent or not.
        unreachable_s: Wall seconds during which nothing takes connections, after which the run is ended.
        extra_body: Fields laid over every request's own; a null takes one away from OpenAI's.
    """

    name: str = "sweep"
    concurrency: Annotated[tuple[int, ...], Field(min_length=1)] = (1, 2, 4, 8, 16, 32, 64)
    lengths: Lengths = Lengths()
    rate_per_s: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] | None = None
    arrivals: Arrivals | None = None
    duration_s: Annotated[float, Field(gt=0)] = 600.0
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    requests: Annotated[int, Field(ge=1)] = 32
    requests_per_user: Annotated[int, Field(ge=0)] = 0
    window_s: Annotated[float, Field(ge=0)] = 0.0
    warmup_requests: Annotated[int, Field(ge=0)] = 1
    start: Literal["staggered", "together"] = "staggered"
    prompts: PromptSource = "chat"
    model: str = "tensorrt_llm"
    seed: int = 0
    level_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    request_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    reply_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    unreachable_s: Annotated[float, Field(ge=0)] = 5.0
    extra_body: dict[str, JsonValue] = Field(default_factory=dict)
    sample_interval_s: Annotated[float, Field(ge=0.05)] = 0.25
    trust: Trust = Trust()

    @property
    def is_open(self) -> bool:
        """Whether requests are sent by the clock, not when a user's last reply has ended."""
        return self.rate_per_s is not None or self.arrivals is not None


def read_scenario(name: str) -> Scenario:
    """Return a scenario from a file, or one that ships with the package, by name.

    Raises:
        UserError: There is none of that name; the shipped ones are listed.
    """
    if Path(name).suffix in {".yaml", ".yml"}:
        return read_yaml(Path(name), Scenario)
    folder = Path(str(files("loadtest"))) / "scenarios"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in folder.glob("*.yaml")))
        raise UserError(f"no scenario '{name}'", hint=f"a .yaml file, or one of: {known}")
    return read_yaml(path, Scenario)
