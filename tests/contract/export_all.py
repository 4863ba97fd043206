"""Exports one checkpoint at several precisions with the ModelOpt of the Python that runs it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from engines.checkpoint.export_job import ExportJob
from engines.checkpoint.modelopt import PACKAGE, metadata
from engines.checkpoint.quantization import quantize
from engines.errors import CommandError
from engines.spec import KvFormat
from tests.tiny_checkpoints import WINDOWS


def export_all(source: Path, out: Path, ways: Mapping[str, KvFormat]) -> None:
    """Export to `out/PRECISION`; write ModelOpt's version and each refusal, and whether it had begun, to `said.json`.

    Args:
        ways: The KV cache of each precision.
    """
    said = {"version": metadata.version(PACKAGE)}
    for precision, kv_cache in ways.items():
        job = ExportJob(source=source, precision=precision, kv_cache=kv_cache, calibration=WINDOWS, seed=0)
        try:
            quantize(job, out / precision, progress=lambda _: None, log=out / f"{precision}.log")
        except CommandError as error:
            said[precision] = f"{error.message} / {error.hint} / begun: {(out / precision).exists()}"
    (out / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    export_all(Path(sys.argv[1]), Path(sys.argv[2]), dict(way.split(":") for way in sys.argv[3:]))  # type: ignore[arg-type]
