"""Audit findings, and a tolerant reader of config.pbtxt."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from google.protobuf import text_format

from engines.files import Strict
from triton_repo.audit.model_config import ModelConfig

Severity = Literal["error", "warning", "advice"]
PLACEHOLDER = re.compile(r"\$\{(\w+)\}")
_BARE = re.compile(r'\$\{(\w+)\}(?=[^"\n]*(?:"[^"\n]*"[^"\n]*)*$)', re.MULTILINE)
_COMMENT = re.compile(r"^\s*#.*$", re.MULTILINE)
LONGEST_CONFIG_BYTES = 4 << 20
NAMES_A_BACKEND = ("triton_backend",)  # inside quotes: parses, but is fatal
TRUE, FALSE = ("true", "True", "TRUE", "1"), ("false", "False", "FALSE", "0")  # the backend's own spelling of booleans
# Substitutes for unfilled placeholders outside quotes, so that the rest of the file can be parsed.
_STAND_IN = {
    "decoupled_mode": "false",
    "logits_datatype": "TYPE_FP32",
    "encoder_input_features_data_type": "TYPE_FP16",
    "prompt_embedding_table_data_type": "TYPE_FP16",
}
FILL = {
    "decoupled_mode": "true",
    "logits_datatype": "TYPE_FP32 (TYPE_FP16 for an engine built so)",
    "encoder_input_features_data_type": "TYPE_FP16",
    "prompt_embedding_table_data_type": "TYPE_FP16",
    "triton_max_batch_size": "the engine's max_batch_size",
    "max_queue_size": "0, or how many requests may wait",
    "max_queue_delay_microseconds": "0",
    "triton_backend": "tensorrtllm",
}


class Finding(Strict):
    """A finding of an audit.

    Attributes:
        severity: `error`: does not load or does not serve; `warning`: does something other than what is written;
            `advice`: works, but is a known source of problems.
        code: Stable identifier of the finding.
        file: Path relative to the repository.
        what: The problem, with the value found.
        fix: What to do.
    """

    severity: Severity
    code: str
    file: str
    what: str
    fix: str


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model's config.pbtxt, as far as it could be read.

    Attributes:
        file: Path relative to the repository.
        config: Triton's ModelConfig; placeholders outside quotes are substituted.
        placeholders: Names of unfilled placeholders.
    """

    model: str
    file: str
    config: Any
    placeholders: frozenset[str]

    @property
    def parameters(self) -> dict[str, str]:
        """Return its parameters, without unfilled placeholders, which upstream treats as missing too."""
        values = {key: value.string_value for key, value in self.config.parameters.items()}
        return {key: value for key, value in values.items() if not PLACEHOLDER.fullmatch(value)}

    @property
    def decoupled(self) -> bool:
        """Return whether a request may have several responses."""
        return bool(self.config.model_transaction_policy.decoupled)

    @property
    def instances(self) -> int:
        """Return the number of instances; Triton's default is one."""
        return sum(group.count or 1 for group in self.config.instance_group) or 1


def read_model(folder: Path, model: str) -> tuple[ModelFile | None, list[Finding]]:
    """Read a model's config.pbtxt; return it, or None if unreadable, and the findings."""
    path, file = folder / model / "config.pbtxt", f"{model}/config.pbtxt"
    if not path.is_file():
        return None, [Finding(severity="error", code="missing-file", file=file, what="no such file", fix=BUILD_AGAIN)]
    if path.stat().st_size > LONGEST_CONFIG_BYTES:
        what = f"{path.stat().st_size} bytes; the limit for a config.pbtxt is {LONGEST_CONFIG_BYTES}"
        return None, [Finding(severity="error", code="not-a-config", file=file, what=what, fix=BUILD_AGAIN)]
    text = _COMMENT.sub("", path.read_text(encoding="utf-8", errors="replace"))
    findings = list(_unfilled(text, file))
    standing = _BARE.sub(lambda found: _STAND_IN.get(found[1], "1"), text)
    try:
        config = _parsed(standing)
    except (text_format.ParseError, ValueError) as error:  # ValueError: a number that its field cannot hold
        what = f"not a Triton model configuration: {error}"
        return None, [*findings, _error("not-a-config", file, what, _key_hint(str(error)))]
    return ModelFile(model, file, config, frozenset(PLACEHOLDER.findall(text))), findings


@lru_cache(maxsize=16)
def _parsed(text: str) -> Any:
    """Return a ModelConfig, to be read only: checking a repository asks for each of its files twice."""
    return text_format.Parse(text, ModelConfig())


def finding_of(severity: Severity, code: str, file: ModelFile, what: str, fix: str) -> Finding:
    """Return a finding about a model's config.pbtxt."""
    return Finding(severity=severity, code=code, file=file.file, what=what, fix=fix)


def number_of(text: str | None) -> float | None:
    """Return a parameter as a number; None if it is not a number."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _unfilled(text: str, file: str) -> Iterator[Finding]:
    bare = set(_BARE.findall(text))
    names = dict.fromkeys(PLACEHOLDER.findall(text))
    for name in names:
        if name in bare or name in NAMES_A_BACKEND:
            fix = f"fill_template.py -i {file} {name}:VALUE; here {FILL.get(name, 'a number of instances, 1 or more')}"
            ends = "and is outside quotes: Triton cannot parse the file" if name in bare else "and names the backend"
            yield _error("bare-placeholder", file, f"the placeholder ${{{name}}} was never filled, {ends}", fix)
    quoted = [name for name in names if name not in bare and name not in NAMES_A_BACKEND]
    if quoted:
        what = f"{len(quoted)} placeholders inside quotes were never filled, and count as missing: {', '.join(quoted)}"
        if len(quoted) == 1:
            what = f"the placeholder ${{{quoted[0]}}} was never filled, and counts as missing"
        fix = f"fill_template.py -i {file} NAME:VALUE, if the default is not suitable"
        yield Finding(severity="advice", code="placeholder", file=file, what=what, fix=fix)


def _error(code: str, file: str, what: str, fix: str) -> Finding:
    return Finding(severity="error", code=code, file=file, what=what, fix=fix)


BUILD_AGAIN = "build the repository again: build-repo ENGINE_DIR --force"


def _key_hint(message: str) -> str:
    """Return the nearest key of ModelConfig, if the parse error is about an unknown key."""
    found = re.search(r'has no field named "(\w+)"', message)
    known = [field.name for field in ModelConfig.DESCRIPTOR.fields]
    close = difflib.get_close_matches(found[1], known, n=1) if found else []
    return f"did you mean '{close[0]}'?" if close else BUILD_AGAIN
