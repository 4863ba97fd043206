"""Hold predictions to published measurements: every case of `validation/`, its goals met or missed (`make fidelity`).

A case is a folder `<engine>/<GPU>/<model>/<workload>` with `case.yaml` (what was deployed, how it was loaded, source
and licence) and `points.csv` (as published). Each point is predicted by the very `predict-load` command that stands
beside it in `comparison.csv`, which this program writes. See README.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor

from validation.calibrated import calibrated_rows, read_rows, write_rows
from validation.fidelity.cases import VALIDATION, read_case
from validation.fidelity.comparison import compare, read_comparison
from validation.fidelity.page import PAGE, calibrated_table, page_of, speculation_table, tables_of


def main() -> int:
    """Predict every case, write each comparison and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="Only the quick subset; writes no page.")
    parser.add_argument("--only", default="", help="Only cases whose folder contains this; writes no page.")
    parser.add_argument(
        "--page", action="store_true", help="Run nothing: write the page from the comparisons there are."
    )
    parser.add_argument(
        "--calibrated", action="store_true", help="Only the calibrations; the page takes the comparisons there are."
    )
    parser.add_argument("--aisimulate", metavar="PYTHON", help="Python of an environment that has NVIDIA's aisimulate.")
    options = parser.parse_args()
    folders = [path.parent for path in sorted(VALIDATION.rglob("case.yaml"))]
    chosen = [folder for folder in folders if options.only in str(folder.relative_to(VALIDATION))]
    chosen = [folder for folder in chosen if read_case(folder).fast or not options.fast]
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        if not (options.page or options.calibrated):
            list(pool.map(compare, chosen, [options.aisimulate] * len(chosen)))
        if not (options.page or options.fast or options.only):
            write_rows(calibrated_rows(pool))
    found = [read_comparison(folder) for folder in (folders if options.page else chosen)]
    whole = not (options.fast or options.only)
    text = tables_of(found) + speculation_table(found) + (calibrated_table(read_rows()) if whole else "")
    sys.stdout.write(text)
    if whole:
        PAGE.write_text(page_of(text, found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
