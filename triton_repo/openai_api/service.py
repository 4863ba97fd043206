"""The front's model: its tokenizer, limits and defaults, and the conversion of requests into work."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from engines.errors import UserError
from triton_repo.models.encoding import Encoder
from triton_repo.models.text import Detokenizer, SpecialTokens, load_tokenizer, special_tokens
from triton_repo.openai_api.chat_template import ChatTemplate, TemplateError, load_template
from triton_repo.openai_api.errors import ApiError, bad_request
from triton_repo.openai_api.reasoning import CLOSE_TAG, OPEN_TAG, Reasoning, ReasoningSplitter, splitter_for
from triton_repo.openai_api.reply_text import ReplyText
from triton_repo.openai_api.requests import ApiRequest, ChatRequest, CompletionRequest, plain_messages
from triton_repo.openai_api.responses import Finish
from triton_repo.openai_api.triton_client import NO_END, Generation
from triton_repo.settings import RepositoryManifest

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """Defaults for omitted sampling parameters: the checkpoint's generation_config.json, else OpenAI's."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None


class GenerationConfig(NamedTuple):
    """A checkpoint's generation_config.json.

    Attributes:
        end_ids: Tokens that end a reply; Llama 3 has three of them, the tokenizer's end token among them.
    """

    sampling: SamplingDefaults
    end_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Work:
    """A request prepared for the engine.

    Attributes:
        text: Receives the reply's tokens.
        end_ids: Tokens that end the reply, beside stop strings.
    """

    generation: Generation
    text: ReplyText
    end_ids: frozenset[int | None]

    @property
    def prompt_tokens(self) -> int:
        """Return the prompt's length."""
        return len(self.generation.input_ids)

    def why_ended(self, last_token: int | None) -> Finish:
        """Return the finish reason: `length`, or `stop` for a stop string or an end token."""
        whole = self.text.tokens >= self.generation.request_output_len
        by_length = whole and not self.text.stopped and (last_token is None or last_token not in self.end_ids)
        return "length" if by_length else "stop"


class Service:
    """A model with its tokenizer and limits.

    Args:
        repository: Manifest of the model repository.
        tokenizer_folder: Folder with tokenizer.json and related files.
        model: Model name for clients; None: the engine's model.

    Raises:
        UserError: A file of the tokenizer is invalid.
    """

    def __init__(
        self, repository: RepositoryManifest, tokenizer_folder: Path, *, model: str | None, reasoning: Reasoning
    ) -> None:
        if "ensemble" not in repository.models:
            raise UserError(
                (
                    f"the OpenAI front sends token ids to the engine, but a repository of the {repository.variant} "
                    "variant takes text"
                ),
                hint="use trtllm-serve, which serves such a checkpoint to OpenAI clients itself",
            )
        self.repository = repository
        self.model = model or repository.engine.model.name
        self._reasoning = reasoning
        tokenizer = load_tokenizer(tokenizer_folder)
        self._encoder = Encoder(tokenizer)
        self._longest_token = max(map(len, tokenizer.get_vocab(with_added_tokens=True)), default=1)
        self._special: SpecialTokens = special_tokens(tokenizer_folder, tokenizer)
        generation = read_generation_config(tokenizer_folder / "generation_config.json")
        self._more_ends = [token for token in generation.end_ids if token != self._special.end_id]
        self._template: ChatTemplate | None = load_template(tokenizer_folder)
        self._defaults = generation.sampling
        tags = (OPEN_TAG, CLOSE_TAG)
        self._detokenizers = {
            skip: Detokenizer(tokenizer, skip_special_tokens=skip, kept=tags) for skip in (True, False)
        }
        limits, resolved = repository.engine.limits, repository.resolved.limits
        self._most_prompt = min(limits.max_input_len, limits.max_seq_len - 1, _number(resolved.max_prompt_tokens))
        self._most_output = min(limits.max_seq_len, _number(resolved.max_output_tokens))
        self._vocabulary = tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def kind(self) -> str:
        """Return the engine's description for replies: emulated with its time scale, built, or relayed."""
        if self.repository.kind == "emulated":
            return f"emulated; time-scale={self.repository.resolved.emulation.time_scale:g}"
        return self.repository.kind

    def chat(self, api_request: ChatRequest) -> Work:
        """Return the work for a chat request; an ApiError if it is impossible."""
        if self._template is None:
            raise bad_request("this tokenizer came without a chat template; use /v1/completions", "messages")
        try:
            prompt = self._template.render(
                plain_messages(api_request.messages),
                add_generation_prompt=api_request.add_generation_prompt,
                options=api_request.chat_template_kwargs,
            )
        except TemplateError as error:
            raise bad_request(str(error), "messages") from error
        splitter = splitter_for(prompt, self._reasoning)
        # the template has already written the special tokens
        ids = self._encode(prompt, add_special_tokens=False)
        return self._work(api_request, ids, self._reply(api_request, splitter))

    def completion(self, api_request: CompletionRequest) -> Work:
        """Return the work for a completion request; an ApiError if it is impossible."""
        prompt = api_request.one_prompt()
        ids = self._encode(prompt, add_special_tokens=True) if isinstance(prompt, str) else self._known(prompt)
        return self._work(api_request, ids, self._reply(api_request, None))

    def _reply(self, api_request: ApiRequest, splitter: ReasoningSplitter | None) -> ReplyText:
        stream = self._detokenizers[api_request.skip_special_tokens].stream()
        return ReplyText(stream, api_request.stops, splitter)

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if len(text) > self._most_prompt * self._longest_token:
            message = f"The prompt has {len(text)} characters, too many for the limit of {self._most_prompt} tokens."
            raise self._too_long(message, "messages")
        return self._encoder.encode(text, add_special_tokens=add_special_tokens)

    def _too_long(self, message: str, param: str) -> ApiError:
        """Return the error for a request longer than the engine's sequences.

        It begins with OpenAI's own words: gateways recognize it by them (LiteLLM's context-window fallbacks).
        """
        longest = self.repository.engine.limits.max_seq_len
        opening = f"This model's maximum context length is {longest} tokens."
        return bad_request(f"{opening} {message}", param, "context_length_exceeded")

    def _known(self, ids: list[int]) -> list[int]:
        wrong = next((token for token in ids if not 0 <= token < self._vocabulary), None)
        if wrong is not None:
            raise bad_request(f"token id {wrong} is not in the vocabulary of {self._vocabulary}", "prompt")
        return ids

    def _work(self, api_request: ApiRequest, ids: list[int], text: ReplyText) -> Work:
        largest = self._output_tokens(api_request, len(ids))
        can_stream = self.repository.resolved.scheduling.streaming
        if api_request.stream and not can_stream:
            raise bad_request("this repository is served without streaming (scheduling.streaming: false)", "stream")
        stops = [self._encoder.encode(stop) for stop in api_request.stops if stop]
        end_ids = [] if api_request.ignore_eos else self._more_ends
        greedy = api_request.temperature == 0
        generation = Generation(
            input_ids=ids,
            request_output_len=largest,
            streaming=can_stream
            and bool(api_request.stream or stops),  # a stop string must be able to end a reply early
            end_id=NO_END if api_request.ignore_eos else self._special.end_id,
            pad_id=self._special.pad_id,
            stop_words=[*stops, *([token] for token in end_ids)],
            temperature=None if greedy else _given(api_request.temperature, self._defaults.temperature),
            runtime_top_k=1 if greedy else _given(api_request.top_k, self._defaults.top_k),
            runtime_top_p=None if greedy else _given(api_request.top_p, self._defaults.top_p),
            repetition_penalty=api_request.repetition_penalty,
            presence_penalty=api_request.presence_penalty,
            frequency_penalty=api_request.frequency_penalty,
            min_tokens=api_request.min_tokens,
            seed=api_request.seed,
        )
        return Work(generation, text, frozenset([generation.end_id, *end_ids]))

    def _output_tokens(self, api_request: ApiRequest, prompt_tokens: int) -> int:
        """Return the maximum length of the reply; an ApiError if prompt and reply exceed the limits."""
        sequence = self.repository.engine.limits.max_seq_len
        if prompt_tokens == 0:
            raise bad_request("the prompt has no tokens", "prompt")
        if prompt_tokens > self._most_prompt:
            message = f"The prompt has {prompt_tokens} tokens; the limit is {self._most_prompt}; shorten it."
            raise self._too_long(message, "messages")
        room = sequence - prompt_tokens
        largest = api_request.max_reply_tokens
        if largest is None:
            return min(room, self._most_output)
        if largest > room:
            message = (
                f"The prompt of {prompt_tokens} tokens and a reply of up to {largest} are {prompt_tokens + largest}; "
                f"request at most {room} tokens."
            )
            raise self._too_long(message, "max_tokens")
        if largest > self._most_output:
            raise bad_request(f"{largest} tokens were requested; the limit is {self._most_output}", "max_tokens")
        return largest


def read_generation_config(path: Path) -> GenerationConfig:
    """Return a checkpoint's sampling defaults, OpenAI's where it states none, and its end tokens.

    Raises:
        UserError: It is not JSON, or a value is not a number.
    """
    if not path.is_file():
        return GenerationConfig(SamplingDefaults())
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        ends = config.get("eos_token_id")
        end_ids = tuple(map(int, ends if isinstance(ends, list) else [] if ends is None else [ends]))
        if config.get("do_sample") is False:
            return GenerationConfig(SamplingDefaults(top_k=1), end_ids)
        top_k = config.get("top_k")
        sampling = SamplingDefaults(
            temperature=float(config.get("temperature", 1.0)),
            top_p=float(config.get("top_p", 1.0)),
            top_k=None if top_k is None else int(top_k),
        )
        return GenerationConfig(sampling, end_ids)
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a generation configuration: {error}") from error


def _number(limit: int | str) -> int:
    """Return a resolved limit as a number; a repository contains no `auto`, so text means no limit."""
    return limit if isinstance(limit, int) else 2**31 - 1


def _given(value: _T | None, default: _T) -> _T:
    return default if value is None else value
