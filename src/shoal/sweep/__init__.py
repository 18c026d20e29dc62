"""``shoal sweep FILE.toml``: one configuration under many settings, in parallel, resumable."""

from .drive import sweep

__all__ = ["sweep"]
