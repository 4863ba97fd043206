"""What a plan says of GPUs that have no price of their own."""

from __future__ import annotations

from datetime import date

from engines.spec import gpu_named
from loadtest.capacity.inputs.prices import SLICES, Price, slices_without_price

H100 = Price(vendor="v", gpu="h100-sxm-80gb", usd_per_gpu_h=3.0, read_on=date(2026, 11, 1), source="a page")
HALF = "h100-sxm-80gb-mig-3g.40gb"


def test_a_slice_is_named_with_its_share_and_what_that_assumes() -> None:
    """Half a GPU costs half its price only if the other half is used; the plan says so and sets no price."""
    third, half = slices_without_price({H100.gpu: H100})
    assert third.startswith("h100-sxm-80gb-mig-2g.20gb has no price and was not tried: 3 fit on one h100-sxm-80gb")
    assert half == (
        f"{HALF} has no price and was not tried: 2 fit on one h100-sxm-80gb, which is rented whole; if you use them "
        f"all, its share is 1.5 USD an hour: set prices.usd_per_gpu_h.{HALF}"
    )


def test_no_share_of_a_price_that_is_not_known() -> None:
    """A slice with a price of its own is tried, and a share of an unknown price is not stated."""
    assert len(slices_without_price({H100.gpu: H100, HALF: H100})) == 1
    assert slices_without_price({}) == []


def test_the_slices_of_a_gpu_fit_into_its_memory() -> None:
    """As many slices as the user guide lists have no more memory than the whole GPU."""
    for name, (whole, count) in SLICES.items():
        assert count * gpu_named(name).memory_bytes <= gpu_named(whole).memory_bytes
