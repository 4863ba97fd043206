"""What lm-evaluation-harness asks: an exported checkpoint in memory, or a server by the OpenAI API.

Imports the harness, so only `harness.py` may import this module.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from engines.accuracy.answer import CLOSE_TAG, answer_of, begins_inside_reasoning
from engines.checkpoint import BATCH_TOKENS, LoadedModel, inputs_of
from engines.console import time_left_text

Progress = Callable[[str], None]
DEFAULT_MAX_TOKENS = 256  # of a reply, where neither the task nor the user states it: the harness's own default
_REPORT_S = 15.0
_Pair = tuple[tuple[str, str], list[int], list[int]]


class CheckpointModel(TemplateLM):
    """An exported checkpoint as the harness's model, on the CPU.

    Args:
        tokenizer: A transformers tokenizer.
        max_seq_len: Longest sequence, prompt and reply together; longer prompts lose their beginning.
    """

    def __init__(self, loaded: LoadedModel, tokenizer: Any, *, max_seq_len: int, progress: Progress) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.max_length = max_seq_len
        self._loaded = loaded
        self._progress = progress

    @property
    def eot_token_id(self) -> int:
        """Return the end token."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Return the token that a text without context is scored after."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """Return the tokenizer's name, for the harness's cache keys."""
        return str(self.tokenizer.name_or_path)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as the model's prompt."""
        return _chat_prompt(self.tokenizer, chat_history, add_generation_prompt)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the tokens of a text, without special tokens unless asked for."""
        return list(self.tokenizer.encode(string, add_special_tokens=bool(add_special_tokens)))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return the log probability of continuations, each after its context."""
        return list(super().loglikelihood(requests, disable_tqdm=disable_tqdm))

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
        """Return the log probability of whole texts, each token scored once."""
        found = []
        for request in requests:
            (text,) = request.args
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length - 1, 1)
            pairs: list[_Pair] = [(("", ""), *make_disjoint_window(window)) for window in windows]
            found.append(sum(nats for nats, _ in self._loglikelihood_tokens(pairs)))
        return found

    def _loglikelihood_tokens(self, requests: Sequence[_Pair], **_: Any) -> list[tuple[float, bool]]:
        sequences = [([*context, *continuation])[-self.max_length :] for _, context, continuation in requests]
        counts = [min(len(continuation), len(each) - 1) for (_, _, continuation), each in zip(requests, sequences)]  # noqa: B905
        alike: dict[tuple[int, ...], list[int]] = {}
        for index, sequence in enumerate(sequences):
            alike.setdefault(inputs_of(sequence), []).append(index)
        order = sorted(alike, key=len)
        found: dict[int, tuple[float, bool]] = {}
        report = _Report(len(requests), "continuations", self._progress)
        while order:
            forward = order[-max(1, BATCH_TOKENS // (len(order[-1]) + 1)) :]
            del order[-len(forward) :]
            batch = [index for inputs in forward for index in alike[inputs]]
            scored = self._loaded.scored([sequences[i] for i in batch], [counts[i] for i in batch])
            found |= dict(zip(batch, scored, strict=True))
            report.add(len(batch))
        return [found[index] for index in range(len(requests))]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002
        """Return greedy replies, without a reasoning model's reasoning."""
        report = _Report(len(requests), "replies", self._progress)
        replies = []
        for request in requests:
            prompt, stated = request.args
            settings = normalize_gen_kwargs(stated, DEFAULT_MAX_TOKENS)
            if settings.get("do_sample"):
                raise NotImplementedError("sampled replies: the exported checkpoint is evaluated greedily")
            inside = begins_inside_reasoning(prompt)
            stops = settings["until"]

            def is_complete(written: list[int], stops: list[str] = stops, inside: bool = inside) -> bool:
                if written[-1] == self.eot_token_id:
                    return True
                text = self._text(written)
                reasons = inside or ("<think>" in text and CLOSE_TAG not in text)
                return not reasons and any(stop in text.rpartition(CLOSE_TAG)[2] for stop in stops)

            largest = min(int(settings["max_gen_toks"]), self.max_length - 1)
            tokens = self.tok_encode(prompt)[-(self.max_length - largest) :]
            written = self._loaded.reply(tokens, max_tokens=largest, is_complete=is_complete)
            replies.append(answer_of(self._text(written), begins_inside=inside, stops=stops))
            report.add(1)
        return replies

    def _text(self, tokens: list[int]) -> str:
        kept = tokens[:-1] if tokens and tokens[-1] == self.eot_token_id else tokens
        return str(self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))


class ServedModel(LocalCompletionsAPI):
    """A served model, asked through the OpenAI API's `/v1/completions` with token ids."""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as the model's prompt, made here: the same prompt that a checkpoint gets."""
        return _chat_prompt(self.tokenizer, chat_history, add_generation_prompt)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return the log probability of continuations, each after its context."""
        return list(super().loglikelihood(requests, disable_tqdm=disable_tqdm))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return replies without a reasoning model's reasoning.

        A model that reasons is sent no stop strings, since its reasoning may quote one; its answer is cut at them here.
        """
        if CLOSE_TAG not in self.tokenizer.get_vocab():
            return [str(reply) for reply in super().generate_until(requests, disable_tqdm=disable_tqdm)]
        open_ended = []
        for request in requests:
            prompt, settings = request.args
            open_ended.append(dataclasses.replace(request, arguments=(prompt, {**settings, "until": []})))
        replies = super().generate_until(open_ended, disable_tqdm=disable_tqdm)
        return [
            answer_of(reply, begins_inside=begins_inside_reasoning(prompt), stops=_stops(settings))
            for reply, (prompt, settings) in zip(replies, (request.args for request in requests), strict=True)
        ]


def _stops(settings: dict[str, Any]) -> list[str]:
    return list(normalize_gen_kwargs(settings, DEFAULT_MAX_TOKENS)["until"])


def _chat_prompt(tokenizer: Any, chat_history: list[dict[str, str]], add_generation_prompt: bool) -> str:
    return str(
        tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
    )


class _Report:
    """Progress of a long list of requests, at most every `_REPORT_S` seconds."""

    def __init__(self, total: int, what: str, progress: Progress) -> None:
        self._total, self._what, self._progress = total, what, progress
        self._done = 0
        self._begin_s = self._said_s = time.monotonic()

    def add(self, count: int) -> None:
        """Count finished requests."""
        self._done += count
        now_s = time.monotonic()
        if now_s - self._said_s >= _REPORT_S:
            self._said_s = now_s
            left = time_left_text(self._done, self._total, now_s - self._begin_s)
            self._progress(f"{self._done} of {self._total} {self._what}{left}")
