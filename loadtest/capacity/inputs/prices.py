"""The hourly price of a GPU, with its source and the date it was read. No price is invented."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated

from pydantic import Field

from engines.errors import UserError
from engines.files import Strict, read_yaml
from engines.names import spec_file
from engines.spec import Accelerator, gpu_named
from engines.units import SECONDS_PER_H
from loadtest.capacity.inputs.demand import PriceChoices, PriceTerms

HOURS_PER_MONTH = 730.0  # 365 days / 12
SECONDS_PER_MONTH = HOURS_PER_MONTH * SECONDS_PER_H
OLD_DAYS = 60  # a list price older than this gets a warning
# The whole GPU of each MIG slice, and how many such slices fit on it: "Instances" as `nvidia-smi mig -lgip` lists them
# on an H100 80GB (jbarrow.ai/field_notes/nvidia-mig, read 2026-11-29); NVIDIA MIG User Guide, "Supported profiles".
SLICES = {"h100-sxm-80gb-mig-2g.20gb": ("h100-sxm-80gb", 3), "h100-sxm-80gb-mig-3g.40gb": ("h100-sxm-80gb", 2)}
SHIPPED = spec_file("prices")


class Price(Strict):
    """One row of a price file.

    Attributes:
        vendor: The seller.
        read_on: Date on which the source showed the price.
        terms: `on_demand`, `reserved` for a year, or `spot`.
    """

    vendor: str
    gpu: str
    usd_per_gpu_h: Annotated[float, Field(gt=0)]
    read_on: date
    source: str
    terms: PriceTerms = "on_demand"

    def age_days(self, today: date) -> int:
        """Return the age of the price in days."""
        return (today - self.read_on).days

    @property
    def words(self) -> str:
        """Price, source and date as one line."""
        terms = self.terms.replace("_", " ")
        return f"{self.usd_per_gpu_h:g} USD per GPU hour, {terms}: {self.source}, read {self.read_on.isoformat()}"


class PriceFile(Strict):
    """A price file: rows of `Price`."""

    prices: tuple[Price, ...]


def prices_for(
    choices: PriceChoices, folder: Path, *, today: date, ratio: float = 1.0, own: Sequence[Accelerator] = ()
) -> dict[str, Price]:
    """Return the price of each GPU that has one.

    Args:
        own: The user's own accelerators; a price in the demand overrides the one in an accelerator's file.
        folder: Where a price file's relative path starts.
        ratio: Applied to every price and stated in its source.

    Raises:
        UserError: The vendor has no row in the file, an unknown GPU has a price, or a GPU has two prices.
    """
    path = SHIPPED if choices.file is None else folder / choices.file
    of_vendor = [row for row in read_yaml(path, PriceFile).prices if row.vendor == choices.vendor]
    rows = [row for row in of_vendor if row.terms == choices.terms]
    if of_vendor and not rows and not choices.usd_per_gpu_h:
        known = ", ".join(sorted({row.terms for row in of_vendor}))
        raise UserError(
            f"prices.terms '{choices.terms}': {path} has no such terms for {choices.vendor}", hint=f"available: {known}"
        )
    if not rows and not choices.usd_per_gpu_h and not own:
        known = ", ".join(sorted({row.vendor for row in read_yaml(path, PriceFile).prices}))
        raise UserError(f"prices.vendor '{choices.vendor}': no row in {path}", hint=f"available: {known}")
    found: dict[str, Price] = {}
    for row in rows:
        name = gpu_named(row.gpu).name
        if name in found:
            raise UserError(f"{path}: {choices.vendor} has two prices for {name}")
        found[name] = row
    for each in own:
        if each.usd_per_h is not None:
            found[each.name] = Price(
                vendor="own",
                gpu=each.name,
                usd_per_gpu_h=each.usd_per_h.value,
                read_on=today,
                source=each.usd_per_h.source,
            )
    names = {each.name for each in own}
    for gpu, usd in choices.usd_per_gpu_h.items():
        name = gpu if gpu in names else gpu_named(gpu).name
        found[name] = Price(vendor="own", gpu=name, usd_per_gpu_h=usd, read_on=today, source="the demand's own price")
    return {name: times(price, ratio) for name, price in found.items()}


def times(price: Price, ratio: float) -> Price:
    """Return a price times a ratio, which is stated in its source."""
    if ratio == 1.0:
        return price
    changed = {"usd_per_gpu_h": price.usd_per_gpu_h * ratio, "source": f"{price.source}, times {ratio:g}"}
    return price.model_copy(update=changed)


def old_prices(prices: Iterable[Price], today: date) -> list[str]:
    """Return a warning for each price that is older than `OLD_DAYS`.

    >>> row = Price(vendor="v", gpu="g", usd_per_gpu_h=1.0, read_on=date(2026, 1, 1), source="a page")
    >>> for part in old_prices([row], date(2026, 4, 1))[0].split("; "):
    ...     print(part)
    the price of g is 90 days old (read 2026-01-01)
    if it has changed, state yours: prices.usd_per_gpu_h, or --gpu-price of report-load
    """
    return [
        f"the price of {price.gpu} is {price.age_days(today)} days old (read {price.read_on.isoformat()}); "
        "if it has changed, state yours: prices.usd_per_gpu_h, or --gpu-price of report-load"
        for price in prices
        if price.age_days(today) > OLD_DAYS
    ]


def slices_without_price(prices: Mapping[str, Price]) -> list[str]:
    """Return a warning for each MIG slice that has no price, with its share of the whole GPU's and what that assumes.

    Vendors of the price file rent whole GPUs. A slice is therefore not priced unasked: one slice costs a whole GPU
    unless the other slices are used as well, which only the user knows.
    """
    return [
        f"{name} has no price and was not tried: {count} fit on one {whole}, which is rented whole; if you use them "
        f"all, its share is {prices[whole].usd_per_gpu_h / count:.3g} USD an hour: set prices.usd_per_gpu_h.{name}"
        for name, (whole, count) in SLICES.items()
        if name not in prices and whole in prices
    ]
