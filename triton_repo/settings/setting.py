"""One serving setting: its value, and the parameter of TensorRT-LLM or Triton that it sets."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, Field, StringConstraints

Auto = Literal["auto"]
Count = Annotated[int, Field(ge=1)]
Amount = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
# Text for use inside the quotes of a text protobuf: a single line.
Line = Annotated[str, StringConstraints(pattern=r"^[^\r\n\x00]*$", max_length=4096)]


class Target(NamedTuple):
    """What a setting sets.

    Attributes:
        place: Model and parameter, or field of config.pbtxt; `ours` if TensorRT-LLM has none.
        upstream_default: TensorRT-LLM's behaviour if the parameter is omitted, as text.
        emulated: Whether an emulated engine, or the Triton around it, is affected.
    """

    place: str
    upstream_default: str
    emulated: bool

    @property
    def engine_parameter(self) -> str | None:
        """The parameter of the `tensorrt_llm` model's config.pbtxt; None if the target is something else.

        >>> Target("tensorrt_llm: enable_kv_cache_reuse", "true", True).engine_parameter
        'enable_kv_cache_reuse'
        """
        found = re.fullmatch(r"tensorrt_llm: (\w+)", self.place)
        return None if found is None else found[1]


def to(default: Any, place: str, upstream_default: str, text: str, *, emulated: bool = False) -> Any:
    """Return a field with its target; see `Target`."""
    extra: dict[str, Any] = {"place": place, "upstream_default": upstream_default, "emulated": emulated}
    return Field(default, description=text, json_schema_extra=extra)


class Setting(NamedTuple):
    """One setting: dotted name, value, description and target."""

    name: str
    value: Any
    text: str
    target: Target


def all_settings(settings: BaseModel, prefix: str = "") -> list[Setting]:
    """Return every setting, in the schema's order.

    >>> class Example(BaseModel):
    ...     delay_us: int = to(0, "preprocessing: delay", "0", "How long a request waits.")
    >>> [(setting.name, setting.value, setting.target.place) for setting in all_settings(Example())]
    [('delay_us', 0, 'preprocessing: delay')]
    """
    found: list[Setting] = []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            found += all_settings(value, f"{prefix}{name}.")
            continue
        extra = field.json_schema_extra
        assert isinstance(extra, dict)  # every leaf is made by `to`
        target = Target(str(extra["place"]), str(extra["upstream_default"]), bool(extra["emulated"]))
        found.append(Setting(prefix + name, value, field.description or "", target))
    return found


def merged_over(settings: dict[str, Any], name: str, value: Any) -> None:
    """Set a dotted name in nested dictionaries."""
    *parents, last = name.split(".")
    for parent in parents:
        settings = settings.setdefault(parent, {})
    settings[last] = value
