"""A smaller copy of aiconfigurator's tables of measured kernels, by framework, which loads in 0.3 of the time.

The library reads each table completely, though a model needs one head size and a few formats. `make setup` writes the
relevant rows beside the environment; if they are missing, damaged or from another release, the library's own tables are
read.
The figures are identical. The local Triton's Python lies within that environment, and reads the same copy.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from engines.derived_copy import derived_folder, is_intact
from engines.names import yaml_data

_PLACE = Path("share") / "kernel-tables"
_MODELS_PYTHON = ("opt", "triton", "py")  # of the local Triton, in the environment of the commands
LIBRARY = "aiconfigurator-core"
HEAD_SIZE = 128  # of every known 8B-class model but one
_PLAIN_GEMM = "fp8_block"  # a format that none of our precisions has
_PER_HEAD_SIZE = ("context_attention_perf.parquet", "generation_attention_perf.parquet")
_GEMM = "gemm_perf.parquet"
# Columns that say where a row comes from; decoding their text is a quarter of the time to load the tables.
_NOT_READ = ("framework", "version", "device", "op_name", "kernel_source")
# Kinds of tables in which a dense model is looked up, and the kind for transfers between GPUs.
_KINDS = ("attention", "gemm", "quantize")
_BETWEEN_GPUS = "comm"
_FRAMEWORKS = ("trtllm", "vllm")
_VERSIONS = "query_versions.yaml"
_REUSE = "perf_data_reuse_manifest.yaml"


def folder_in(prefix: Path) -> Path:
    """Return the folder of the copy for a Python's prefix: in its environment, or in the one around a local Triton.

    >>> print(folder_in(Path("/e")), folder_in(Path("/e/opt/triton/py")))
    /e/share/kernel-tables /e/share/kernel-tables
    """
    return (prefix.parents[2] if prefix.parts[-3:] == _MODELS_PYTHON else prefix) / _PLACE


FOLDER = folder_in(Path(sys.prefix))


def smaller_tables(kernels: str, system: str, head_size: int, folder: Path = FOLDER) -> str | None:
    """Return the folder with a framework's rows for a system and a head size, if intact and of the installed release.

    It may have been made by another Python's copy of that release, as long as that is there: links lead to it.
    """
    if head_size != HEAD_SIZE or not (folder / kernels / f"{system}.yaml").is_file():
        return None

    def is_read(name: str) -> bool:
        of, *rest = name.split("/")
        return of == kernels and (len(rest) == 1 or rest[1] == system)

    return str(folder / kernels) if is_intact(folder, _made_of(), is_read) else None


@cache
def version_of(kernels: str, system: str, folder: str | None) -> str:
    """Return the version of a framework's tables that a folder (None: the library's) states as the current one."""
    stated = yaml_data((_library_folder() if folder is None else Path(folder)) / _VERSIONS)
    versions = stated["overrides"].get(system, {}).get(kernels, stated["defaults"][kernels])
    return str(versions["current"])


def write_smaller_tables(systems: tuple[str, ...], folder: Path = FOLDER) -> None:
    """Write the relevant rows and columns of some systems; other files are linked.

    Raises:
        ModuleNotFoundError: The library, or pyarrow, is not installed.
    """
    library = _library_folder()
    with derived_folder(folder, _made_of()) as made:
        for kernels in _FRAMEWORKS:
            _write_framework(kernels, systems, library, made / kernels)


def _write_framework(kernels: str, systems: tuple[str, ...], library: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    of_systems = {path.stem for path in library.glob("*.yaml") if (library / "data" / path.stem).is_dir()}
    for path in library.glob("*.yaml"):
        if path.stem in systems or (path.stem not in of_systems and path.name != _REUSE):
            (folder / path.name).symlink_to(path)
    for system in systems:
        source = library / "data" / system
        for path in sorted(source.rglob("*")):
            of = path.relative_to(source)
            if path.is_file() and (of.parts[0] == _BETWEEN_GPUS or (of.parts[0] in _KINDS and kernels in of.parts)):
                target = folder / "data" / system / of
                target.parent.mkdir(parents=True, exist_ok=True)
                _write_smaller(path, target)
    relevant = _relevant(yaml_data(library / _REUSE), kernels, folder)
    (folder / _REUSE).write_text(yaml.safe_dump(relevant), encoding="utf-8")


def _relevant(reuse: dict[str, Any], kernels: str, folder: Path) -> dict[str, Any]:
    """Return which kernels' rows may come from other frameworks' tables, of the tables in a folder.

    The library reads this list once for each of them. Where it has no other framework's table, only the own one counts.
    """
    shared = {path.name for path in folder.glob(f"data/*/{_BETWEEN_GPUS}/**/*")}
    own = {path.name for path in folder.glob("data/**/*")} - shared
    groups = [
        group
        for group in reuse["groups"]
        if group["op_file"] in shared or (group["op_file"] in own and kernels in group["frameworks"])
    ]
    return reuse | {"groups": groups}


def _write_smaller(path: Path, target: Path) -> None:
    import pyarrow as pa  # noqa: PLC0415 (of the setup alone)
    import pyarrow.compute as pc  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    if path.name in _PER_HEAD_SIZE:
        rows = pc.field("head_dim") == HEAD_SIZE
    elif path.name == _GEMM:
        rows = pc.field("gemm_dtype") != _PLAIN_GEMM
    else:
        target.symlink_to(path)
        return
    table = pq.read_table(path).filter(rows)
    table = table.drop_columns([name for name in table.column_names if name in _NOT_READ])
    complete = pa.schema([column.with_nullable(False) for column in table.schema])  # an eighth of the time to load it
    pq.write_table(table.cast(complete), target)


def _library_folder() -> Path:
    found = find_spec("aiconfigurator_core")
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"{LIBRARY} is not installed", name=LIBRARY)
    return Path(found.origin).parent / "systems"


def _made_of() -> dict[str, str]:
    return {LIBRARY: metadata.version(LIBRARY), "head_size": str(HEAD_SIZE)}
