"""Every link from a checkpoint to a served engine, checked on a GPU; imports `audit` and `models`."""

from triton_repo.gpu_check.links import Link, links, links_table
from triton_repo.gpu_check.machine import reasons_against
from triton_repo.gpu_check.report import Outcome, Report, report_text
from triton_repo.gpu_check.session import Session, Settings
from triton_repo.gpu_check.walk import CHECKS, walk

__all__ = [
    "CHECKS",
    "Link",
    "Outcome",
    "Report",
    "Session",
    "Settings",
    "links",
    "links_table",
    "reasons_against",
    "report_text",
    "walk",
]
