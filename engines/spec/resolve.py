"""What a `--gpu` or a `--model` means: a known name, or a file or folder of the user's own."""

from __future__ import annotations

from pathlib import Path

from engines.errors import UserError
from engines.files import Source, source_of
from engines.names import is_accelerator_file, refuse_unknown_gpu, refuse_unknown_model
from engines.spec.accelerator import read_accelerator
from engines.spec.gpu import GpuSpec, gpu_named
from engines.spec.model import ModelSpec, model_named
from engines.spec.model_config import CONFIG_NAME, model_in


def resolve_gpu(text: str) -> GpuSpec:
    """Return a GPU by name, or the accelerator that a .yaml file describes.

    Raises:
        MissingError: There is no such file.
        UserError: There is no such GPU, or the file does not fit the schema.
    """
    if is_accelerator_file(text):
        return read_accelerator(Path(text)).spec
    refuse_unknown_gpu(text)
    return gpu_named(text)


def resolve_model(text: str) -> ModelSpec:
    """Return a model by name, or the geometry of the checkpoint in a folder.

    Raises:
        MissingError: The folder holds no config.json.
        UserError: The model does not exist, or its config.json states an unknown architecture.
    """
    if is_checkpoint_folder(text):
        return model_in(Path(text))
    refuse_unknown_model(text)
    return model_named(text)


def is_checkpoint_folder(text: str, *, within: Path | None = None) -> bool:
    """Return whether a `--model` is a folder: one that is there, and no known model's name.

    Args:
        within: Where a relative path begins; None: the working directory.
    """
    try:
        model_named(text)
    except UserError:
        return ((within or Path()) / text).is_dir()
    return False


def sources_named(*, gpu: str | None, model: str | None) -> list[Source]:
    """Return the user's own files among what a `--gpu` and a `--model` name; of known names, nothing."""
    found = [source_of(Path(gpu))] if gpu is not None and is_accelerator_file(gpu) else []
    if model is not None and is_checkpoint_folder(model):
        found.append(source_of(Path(model) / CONFIG_NAME))
    return found
