"""ModelOpt's presets, configurations and calibration. No other file contains these.

TensorRT-LLM 1.2 pins ModelOpt 0.37 (its container); offline quantization uses the current version. The format of
`quant_cfg` differs: up to 0.43 a mapping from a wildcard to a quantizer's attributes, from 0.44 on a list of entries.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

from engines.checkpoint.export_job import Layout
from engines.checkpoint.inspection import library
from engines.checkpoint.library_output import nothing_on_stdout
from engines.console import time_left_text
from engines.errors import MissingError
from engines.spec import KvFormat

Progress = Callable[[str], None]

PACKAGE = "nvidia-modelopt"
OLDEST_VERSION = (0, 37)  # what TensorRT-LLM 1.2.1 pins (requirements.txt: nvidia-modelopt[torch]~=0.37.0)
_NVFP4_WITHOUT_GPU = (0, 45)  # earlier versions query the GPU's compute capability when packing, even without a GPU
PROGRESS_STEPS = 4
BATCH_TOKENS = 8192  # AWQ rounds every weight eleven times per batch: few large batches are several times faster

# ModelOpt's preset of each precision; bf16 and fp16 have none, and int8_wo is rounded by TensorRT-LLM on loading.
_PRESETS = {
    "fp8": "FP8_DEFAULT_CFG",
    "int8_sq": "INT8_SMOOTHQUANT_CFG",
    "int4_awq": "INT4_AWQ_CFG",
    "w4a8_awq": "W4A8_AWQ_BETA_CFG",
    "nvfp4": "NVFP4_DEFAULT_CFG",
}
_KV_BITS: dict[KvFormat, Any] = {"int8": 8, "fp8": (4, 3)}
_KV_QUANTIZERS = "*[kv]_bmm_quantizer"


def require_modelopt(precision: str) -> None:
    """Refuse what the installed ModelOpt cannot do.

    Raises:
        MissingError: ModelOpt is not installed, is too old, lacks the precision's preset, or needs a GPU for it.
    """
    with nothing_on_stdout():
        mtq = library("modelopt.torch.quantization")
    version = metadata.version(PACKAGE)
    oldest = ".".join(str(part) for part in OLDEST_VERSION)
    hint = f"pip install --upgrade '{PACKAGE}>={oldest}', or quantize offline and copy the checkpoint"
    if _parts(version) < OLDEST_VERSION:
        raise MissingError(f"ModelOpt {version} is too old: the oldest supported version is {oldest}", hint=hint)
    preset = _PRESETS.get(precision)
    if preset is not None and not hasattr(mtq, preset):
        raise MissingError(f"ModelOpt {version} lacks {preset}, which quantization to {precision} needs", hint=hint)
    if precision == "nvfp4" and _parts(version) < _NVFP4_WITHOUT_GPU and not library("torch").cuda.is_available():
        raise MissingError(
            f"ModelOpt {version} needs a GPU to pack NVFP4 weights, and this machine has none",
            hint=f"{PACKAGE} 0.45 and later need none",
        )


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def calibrate(model: Any, layout: Layout, windows: list[list[int]], *, seed: int, progress: Progress) -> None:
    """Insert quantizers and set their ranges; does nothing if ModelOpt has nothing to quantize."""
    config = quantizer_config(layout)
    if config is None:
        return
    torch, mtq = library("torch"), library("modelopt.torch.quantization")
    progress(f"calibrate on {len(windows)} windows ..." if windows else "scale weights ...")

    def run_text(calibrated: Any) -> None:
        size, begin_s = max(BATCH_TOKENS // len(windows[0]), 1), time.monotonic()
        every = max(len(windows) // size // PROGRESS_STEPS, 1) * size
        with torch.inference_mode():
            for begin in range(0, len(windows), size):
                if begin and begin % every == 0:
                    left = time_left_text(begin, len(windows), time.monotonic() - begin_s)
                    progress(f"calibrate: {begin} of {len(windows)} windows{left}")
                # Decoder only: the output projection is not quantized, and its logits would be the largest tensor.
                calibrated.model(torch.tensor(windows[begin : begin + size]), use_cache=False)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mtq.quantize(model, config, forward_loop=run_text if windows else None)


def quantizer_config(layout: Layout) -> dict[str, Any] | None:
    """Return ModelOpt's configuration in the installed version's format; None if nothing is to be quantized."""
    mtq = library("modelopt.torch.quantization")
    preset = _PRESETS.get(layout.precision)
    if preset is None and layout.kv_cache == "16bit":
        return None
    if preset is not None:
        config: dict[str, Any] = copy.deepcopy(getattr(mtq, preset))
    elif isinstance(mtq.FP8_DEFAULT_CFG["quant_cfg"], dict):
        config = {"quant_cfg": {"default": {"enable": False}}, "algorithm": "max"}
    else:
        config = {"quant_cfg": [{"quantizer_name": "*", "enable": False}], "algorithm": "max"}
    if layout.group_size:
        for attributes in _quantizers(config["quant_cfg"]):
            if attributes.get("block_sizes"):
                attributes["block_sizes"][-1] = layout.group_size
    if layout.kv_cache != "16bit":
        _add(config["quant_cfg"], _KV_QUANTIZERS, {"num_bits": _KV_BITS[layout.kv_cache], "axis": None})
    return config


def _quantizers(quant_cfg: dict[str, Any] | list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the attributes of every quantizer; a two-step quantizer has two."""
    values = quant_cfg.values() if isinstance(quant_cfg, dict) else [entry.get("cfg") for entry in quant_cfg]
    for value in values:
        yield from value if isinstance(value, list) else [value or {}]


def _add(quant_cfg: dict[str, Any] | list[dict[str, Any]], name: str, attributes: dict[str, Any]) -> None:
    if isinstance(quant_cfg, dict):
        quant_cfg[name] = {**attributes, "enable": True}
    else:
        quant_cfg.append({"quantizer_name": name, "cfg": attributes})
