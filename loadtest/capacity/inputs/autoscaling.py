"""What a demand says about autoscaling: the cold start of a replica, stated or recorded by a server."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import model_validator

from engines.autoscaling import ServerStart, SyncSeconds
from engines.errors import UserError
from engines.files import Strict, read_json
from engines.names import engine_title
from loadtest.scenario import NotNegative, Positive

STATED = ("start_up_s", "loading_s", "start_up_source")


class Autoscaling(Strict):
    """What the control laws of an autoscaler are simulated with.

    Attributes:
        start_up_s: From requesting a replica to its first request: machine, image, engine.
        loading_s: Of `start_up_s`, the seconds in which the pod runs and loads the weights and the engine.
        start_up_source: Where `start_up_s` is from: `measured`, on what, and when.
        loading_from: `start.json` of a model repository that serve-repo started. It states `loading_s`, and the source
            is its kind; `pending_s` is then the time before, machine and image, and `start_up_s` the sum.
        sync_s: Time between two evaluations of a control law: a flag of the cluster's kube-controller-manager.
    """

    start_up_s: Positive = 300.0
    loading_s: NotNegative = 0.0
    start_up_source: str = "assumed"
    loading_from: str | None = None
    pending_s: NotNegative | None = None
    sync_s: SyncSeconds = 15.0

    @model_validator(mode="after")
    def _within(self) -> Self:
        if self.loading_s > self.start_up_s:
            raise ValueError(f"loading_s {self.loading_s:g} is part of start_up_s, {self.start_up_s:g}")
        if self.loading_from is not None and self.pending_s is None:
            raise ValueError("loading_from needs pending_s: the seconds until the pod runs, machine and image")
        if self.loading_from is None and self.pending_s is not None:
            raise ValueError("pending_s belongs to loading_from; without it, start_up_s less loading_s is the same")
        return self


def with_recorded_start(scaling: Autoscaling, folder: Path) -> Autoscaling:
    """Return a demand's autoscaling with the cold start of `loading_from`, if it names one.

    Args:
        folder: Where the path starts.

    Raises:
        MissingError, UserError: As `files.read_json` does; or the same seconds are stated too.
    """
    if scaling.loading_from is None or scaling.pending_s is None:
        return scaling
    stated = [key for key in STATED if key in scaling.model_fields_set]
    if stated:
        raise UserError(f"autoscaling.{stated[0]} is stated and taken from loading_from", hint="remove one of the two")
    path = folder / scaling.loading_from
    start = read_json(path, ServerStart)
    words = f"pending {scaling.pending_s:g} s as stated, loading {start.loading_s:g} s {start.kind} {start.started_on}"
    return scaling.model_copy(
        update={
            "start_up_s": scaling.pending_s + start.loading_s,
            "loading_s": start.loading_s,
            "start_up_source": f"{words}, {engine_title(start.model, start.precision, start.gpu)}",
        }
    )
