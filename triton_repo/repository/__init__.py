"""Rendering of a model repository from an engine's manifest. May import `settings` and `interface`."""

from triton_repo.repository.render import TOKENIZER_FOLDER, render_repository, resolve_for

__all__ = ["TOKENIZER_FOLDER", "render_repository", "resolve_for"]
