"""Errors that say, in one line, what is wrong and what to do about it."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

__all__ = ["BadInput", "MissingExtra", "RunFailed", "ShoalError", "need"]


class ShoalError(Exception):
    """Base of every error that Shoal raises on purpose. Its text is one line."""

    status = 1


class BadInput(ShoalError):
    """A value that the user gave and that cannot be used.

    Args:
        field: dotted name of the field, as in TOML or ``--set``.
        value: what was given.
        allowed: what would have been accepted, in words.
    """

    status = 2

    def __init__(self, field: str, value: Any, allowed: str) -> None:
        self.field, self.value, self.allowed = field, value, allowed
        shown = repr(value)
        if len(shown) > 80:
            shown = shown[:77] + "..."
        super().__init__(f"{field} = {shown}: {' '.join(allowed.split())}")

    def under(self, prefix: str) -> BadInput:
        """The same error, with ``prefix`` put before the name of the field."""
        return BadInput(f"{prefix}.{self.field}", self.value, self.allowed)


class MissingExtra(ShoalError):
    """An optional library is not installed."""

    status = 2


class RunFailed(ShoalError):
    """A run that started and could not go on (divergence, nobody left, ...)."""


def need(module: str, extra: str) -> ModuleType:
    """Import an optional library where it is used.

    Raises:
        MissingExtra: naming the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        raise MissingExtra(f"{missing} is not installed: pip install 'shoal[{extra}]'") from error
