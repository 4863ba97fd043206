"""Audit of a model repository and its engine. May import `settings` and `interface`."""

from triton_repo.audit.audit import EXPECTED, audit_repository
from triton_repo.audit.findings import Finding, read_model
from triton_repo.audit.require_valid import check_repository, read_config

__all__ = ["EXPECTED", "Finding", "audit_repository", "check_repository", "read_config", "read_model"]
