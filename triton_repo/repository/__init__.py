"""Rendering of a model repository from an engine's manifest. May import `settings` and `interface`."""

from triton_repo.repository.render import checked_tokenizer, render_repository, resolve_for

__all__ = ["checked_tokenizer", "render_repository", "resolve_for"]
