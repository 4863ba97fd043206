"""Audit of a model repository, and whether it agrees with its engine; imports `settings`, `interface` and `server`."""

from triton_repo.audit.audit import audit_repository
from triton_repo.audit.findings import Finding
from triton_repo.audit.require_valid import check_repository, read_config

__all__ = ["Finding", "audit_repository", "check_repository", "read_config"]
