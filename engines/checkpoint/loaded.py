"""An exported checkpoint held in memory: scores continuations and writes greedy replies.

The forward pass is `verify`'s: dequantized weights, and what the engine rounds at run time rounded with its scales.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from engines.checkpoint.inspection import library
from engines.checkpoint.trtllm_checkpoint import read_exported
from engines.checkpoint.verification import LayerCache, exported_geometry_of, rms_norm, run_layer
from engines.checkpoint.weight_formats import FLOAT32_BYTES
from engines.spec import ModelSpec

_LIBRARIES_BYTES = 1_500_000_000  # torch, transformers and the evaluation harness
BATCH_TOKENS = 2048  # of one forward pass; logits are computed for the scored tokens only


def loaded_memory_bytes(model: ModelSpec) -> int:
    """Return the approximate memory of a loaded model in bytes: every weight in float32, and the libraries."""
    return _LIBRARIES_BYTES + FLOAT32_BYTES * (model.parameters + 2 * BATCH_TOKENS * model.vocab_size)


class Scored(NamedTuple):
    """A continuation's log probability in nats, and whether greedy decoding would have produced it."""

    nats: float
    is_greedy: bool


def inputs_of(sequence: Sequence[int]) -> tuple[int, ...]:
    """Return what a model reads to score a sequence: all tokens but the last."""
    return tuple(sequence[:-1])


class LoadedModel:
    """The weights of an exported checkpoint, in float32, on the CPU.

    Args:
        folder: Folder of the TensorRT-LLM checkpoint.

    Raises:
        MissingError: torch or safetensors is not installed, or a file is missing.
        ToolError: A tensor is missing, unknown or misshapen.
    """

    def __init__(self, folder: Path) -> None:
        exported = read_exported(folder)
        self._geometry = exported_geometry_of(exported)
        self._embedding = exported.embedding()
        self._head = self._embedding if exported.config.get("share_embedding_table") else exported.head()
        self._norm = exported.final_norm()
        self._layers = [exported.layer(index) for index in range(exported.layers)]

    def scored(self, sequences: Sequence[Sequence[int]], continuations: Sequence[int]) -> list[Scored]:
        """Score the last tokens of several sequences in one forward pass.

        Sequences that differ in their last token alone are computed once: the last token is predicted, not read.

        Args:
            sequences: Token ids. Shorter ones are padded on the right, which a causal model does not see.
            continuations: How many tokens at the end of each sequence to score; fewer than the sequence has.
        """
        torch = library("torch")
        rows = {inputs: row for row, inputs in enumerate(dict.fromkeys(inputs_of(each) for each in sequences))}
        longest = max(map(len, rows))
        found = []
        with torch.inference_mode():
            hidden = self._hidden(torch.tensor([[*each, *[0] * (longest - len(each))] for each in rows]))
            for sequence, count in zip(sequences, continuations, strict=True):
                row, end = rows[inputs_of(sequence)], len(sequence) - 1
                chosen = torch.tensor(sequence[end - count + 1 :])
                logits = torch.log_softmax(hidden[row, end - count : end] @ self._head.T, dim=-1)
                nats = logits.gather(1, chosen[:, None]).double().sum()
                found.append(Scored(float(nats), bool((logits.argmax(-1) == chosen).all())))
        return found

    def reply(self, prompt: Sequence[int], *, max_tokens: int, is_complete: Callable[[list[int]], bool]) -> list[int]:
        """Return the tokens of a greedy reply: at most `max_tokens`, fewer if it is complete before."""
        torch = library("torch")
        caches = [LayerCache() for _ in self._layers]
        written: list[int] = []
        tokens = torch.tensor([list(prompt)])
        with torch.inference_mode():
            while len(written) < max_tokens and not (written and is_complete(written)):
                last = self._hidden(tokens, caches)[0, -1]
                written.append(int((self._head @ last).argmax()))
                tokens = torch.tensor([written[-1:]])
        return written

    def _hidden(self, tokens: Any, caches: Sequence[LayerCache] | None = None) -> Any:
        """Return the last hidden states, normalized; shape (windows, tokens, hidden)."""
        hidden = self._embedding[tokens]
        for index, layer in enumerate(self._layers):
            hidden = run_layer(hidden, layer, self._geometry, None if caches is None else caches[index])
        return rms_norm(hidden, self._norm, self._geometry.norm_epsilon)
