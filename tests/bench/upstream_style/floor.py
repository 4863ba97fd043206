"""A model that answers with a constant: what Triton's Python backend takes whatever a model does in it."""

import numpy as np
import triton_python_backend_utils as backend


class TritonPythonModel:
    """Entry point by the name Triton looks for."""

    def initialize(self, _args):
        """Make the one answer."""
        self.answer = backend.Tensor("OUTPUT", np.array([[b"x"]], dtype=object))

    def execute(self, requests):
        """Give it to everyone."""
        return [backend.InferenceResponse([self.answer]) for _ in requests]
