"""Fit the power prior, hold it to models and GPUs it has not seen, write comparisons and page (`make energy`)."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import numpy as np

from engines.spec import PowerPrior, power_prior
from engines.steptime import Z_95
from validation.energy.cases import COMPARISON, HERE, Measured, read_cases
from validation.energy.fit import NAMES, Compared, compare, errors, fitted

PAGE = HERE.parents[1] / "docs" / "measurements" / "energy.md"


def main() -> int:
    """Write every `comparison.csv` and the page; print the table."""
    cases = read_cases()
    found = compare(cases)
    for each in found:
        _write_comparison(each)
    text = table(found)
    sys.stdout.write(text)
    PAGE.write_text(page(text, fitted(cases), found), encoding="utf-8")
    return 0


def comparison_rows(found: Compared) -> list[list[str]]:
    """Return the rows of `comparison.csv`, its head first."""
    ratio = float(np.exp(Z_95 * power_prior().spread(found.measured.case.gpu).log_sd))
    head = [
        *("batch", "power_w_measured", "power_w_predicted", "power_w_low", "power_w_high", "error_percent"),
        *("other_gpu_error_percent", "energy_j_per_token_measured", "predict_load_j_per_token"),
        "predict_load_error_percent",
    ]
    rows = [head]
    for place, point in enumerate(found.measured.points):
        model_w, gpu_w = found.model_w[place], found.gpu_w[place]
        chain: list[float | None] = [None, None]
        if found.chain_w is not None and found.rates_per_s is not None:
            joules = found.chain_w[place] / found.rates_per_s[place]
            chain = [joules, 100 * (joules / point.energy_j_per_token - 1)]
        cells = (
            *(point.batch, point.power_w, model_w, model_w / ratio, model_w * ratio),
            *(100 * (model_w / point.power_w - 1), 100 * (gpu_w / point.power_w - 1)),
            *(point.energy_j_per_token, *chain),
        )
        rows.append(["" if each is None else f"{each:.5g}" for each in cells])
    return rows


def _write_comparison(found: Compared) -> None:
    with (found.measured.folder / COMPARISON).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(comparison_rows(found))


def table(found: Sequence[Compared]) -> str:
    """Return the table of errors, a row for each case and one for all of them."""
    lines = [
        "| case | points | watts, model unseen | watts, GPU unseen | in the 90 % interval | J/token, predict-load |",
        "| --- | --- | --- | --- | --- | --- |",
        _line("**all**", found),
    ]
    lines += [_line(_link(each.measured), [each]) for each in found]
    return "\n".join(lines) + "\n"


def _link(measured: Measured) -> str:
    return f"[{measured.name}](../../validation/energy/{measured.name})"


def _line(name: str, found: Sequence[Compared]) -> str:
    of_model = np.concatenate([errors(each.measured, each.model_w) for each in found])
    of_gpu = np.concatenate([errors(each.measured, each.gpu_w) for each in found])
    width = np.concatenate([[_width(each)] * len(each.model_w) for each in found])
    inside = int((np.abs(of_model) <= width).sum())
    cells = [str(len(of_model)), _errors(of_model), _errors(of_gpu), f"{inside} of {len(of_model)}", _chain(found)]
    return f"| {name} | {' | '.join(cells)} |"


def _width(found: Compared) -> float:
    return Z_95 * power_prior().spread(found.measured.case.gpu).log_sd


def _errors(logs: Iterable[float]) -> str:
    percent = 100 * np.expm1(np.asarray(logs))
    return f"{np.abs(percent).mean():.1f} %, {percent.mean():+.1f}"


def _chain(found: Sequence[Compared]) -> str:
    logs = [
        float(np.log(watts / rate / point.energy_j_per_token))
        for each in found
        if each.chain_w is not None and each.rates_per_s is not None
        for watts, rate, point in zip(each.chain_w, each.rates_per_s, each.measured.points, strict=True)
    ]
    return _errors(logs) if logs else "-"


def rms(found: Sequence[Compared], *, other_gpu: bool) -> float:
    """Return the root mean square of ln(predicted / measured) of cases predicted without their model, or their GPU."""
    logs = [errors(each.measured, each.gpu_w if other_gpu else each.model_w) for each in found]
    return float(np.sqrt(np.mean(np.concatenate(logs) ** 2)))


def page(text: str, best: PowerPrior, found: Sequence[Compared]) -> str:
    """Return the page of accuracy."""
    constants = ", ".join(f"`{name}` {getattr(best, name):.4g}" for name in NAMES)
    today = datetime.now(tz=UTC).date().isoformat()
    return f"""# Predicted watts against measured

Written by `make energy` on {today}; do not edit. Each cell: the mean absolute error in percent, and the mean error
with its sign. Each case is a folder under `validation/energy/`: points as published, and the comparison point by point.
How to use the predictions: [price tokens](../how-to/price-tokens.md).

{text}
- **Model not seen**: predicted by a fit to the other models, at the measured step time; root mean square of
  ln(predicted / measured) {rms(found, other_gpu=False):.3f}.
- **GPU not seen**: predicted by a fit to the other GPU, {rms(found, other_gpu=True):.3f}.
- **By predict-load**: the model not seen, at the step times of `predict-load`. The vLLM profile of step times
  was fitted to these rows, so this column is out of sample only in power.
- The fit to all points gives {constants};
  `engines/spec/data/power.yaml` ships these.

## What is not known

- The form of the model (which terms, and `arithmetic_ratio` 0.8) was chosen among a dozen by the errors above, so they
  are too low.
- Prompt lengths are not published: {_lengths(found)} tokens are assumed. Prefill is a tenth of these loads. A load of
  long prompts is an extrapolation: it assumes that matrix products at their peak rate draw the whole board power.
- Only bf16, only vLLM, only H100 and B200, one GPU each. FP8 and INT4 count their fewer bytes and their higher peak;
  another server's sampling may take less than vLLM's. Other GPUs have an interval twice as wide.
- The two farthest points (+34 and +29 %) are the longest contexts on the B200: reading a byte of KV cache takes less
  energy there than reading one of weights.
- A GPU without requests counts with its base power, 0.18 of the board power, which was measured only between the
  kernels of slow hosts. An idle GPU draws less.
- Nemotron Nano 9B's rows are left out: a hybrid of Mamba and attention, whose geometry this project does not model.
"""


def _lengths(found: Sequence[Compared]) -> str:
    return " or ".join(str(each) for each in sorted({each.measured.case.isl for each in found}))


if __name__ == "__main__":
    sys.exit(main())
