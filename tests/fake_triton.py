"""A stand-in for what Triton's Python backend gives a model: tensors, senders, metrics, the log."""

from __future__ import annotations

import threading
from typing import Any, ClassVar

import numpy as np

FINAL = 1


class FakeTensor:
    """A named array."""

    def __init__(self, name: str, values: Any) -> None:
        self._name = name
        self._values = values

    def name(self) -> str:
        """Return its name."""
        return self._name

    def as_numpy(self) -> Any:
        """Return its values."""
        return self._values


class FakeResponse:
    """Output tensors, or an error."""

    def __init__(self, outputs: list[FakeTensor] | None = None, error: str | None = None) -> None:
        self.outputs = {tensor.name(): tensor.as_numpy() for tensor in outputs or []}
        self.error = error


class FakeFamily:
    """A metric family whose metrics take anything; what is observed is kept by the family's name."""

    GAUGE = COUNTER = HISTOGRAM = "kind"
    observed: ClassVar[dict[str, list[float]]] = {}

    def __init__(self, *, name: str, **_: Any) -> None:
        self.name = name

    def Metric(self, **_: Any) -> FakeFamily:  # noqa: N802 (Triton's name)
        """Return a metric."""
        return self

    def set(self, value: float) -> None:
        """Take a value."""

    def increment(self, value: float) -> None:
        """Take a growth; Triton's process can die of a negative one."""
        assert value >= 0

    def observe(self, value: float) -> None:
        """Keep an observation."""
        self.observed.setdefault(self.name, []).append(value)


class FakeModelError(Exception):
    """What Triton raises where a response is not taken."""


class FakeLogger:
    """Keeps what is logged."""

    errors: ClassVar[list[str]] = []

    @classmethod
    def log_error(cls, message: str) -> None:
        """Keep a message."""
        cls.errors.append(message)


class FakeBackend:
    """What Triton's module offers."""

    TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL
    TritonModelException = FakeModelError
    Logger = FakeLogger
    Tensor = FakeTensor
    InferenceResponse = FakeResponse
    MetricFamily = FakeFamily
    TritonError: ClassVar[Any] = staticmethod(str)

    @staticmethod
    def get_input_tensor_by_name(request: FakeRequest, name: str) -> FakeTensor | None:
        """Return an input."""
        return request.inputs.get(name)


class FakeSender:
    """Keeps what is sent; nothing may be asked or sent past the final response."""

    def __init__(self) -> None:
        self.sent: list[FakeResponse] = []
        self.cancelled = False
        self.ended = threading.Event()
        self.begun = threading.Event()

    def send(self, response: FakeResponse | None = None, flags: int = 0) -> None:
        """Take a response."""
        assert not self.ended.is_set(), "sent past the final response"
        if response is not None:
            self.sent.append(response)
            self.begun.set()
        if flags == FINAL:
            self.ended.set()

    def is_cancelled(self) -> bool:
        """Return whether the client left."""
        assert not self.ended.is_set(), "asked past the final response: Triton's process would die"
        return self.cancelled


class FakeRequest:
    """Inputs and an id."""

    def __init__(self, request_id: str = "", **inputs: Any) -> None:
        self.inputs = {name: FakeTensor(name, np.asarray(values)) for name, values in inputs.items()}
        self.sender = FakeSender()
        self._id = request_id

    def request_id(self) -> str:
        """Return its id."""
        return self._id

    def get_response_sender(self) -> FakeSender:
        """Return where its responses go."""
        return self.sender
