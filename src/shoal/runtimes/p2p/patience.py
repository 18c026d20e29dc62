"""How long a peer waits for others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from shoal.core import Part

__all__ = ["Patience"]


@dataclass(frozen=True)
class Patience(Part):
    """How long a peer waits for what others owe it.

    Args:
        strict: wait for everyone, and fail where someone stays away for ``most_s``. Without it a peer
            goes on with what has come.
        factor: of the time that parcels usually take, measured, or the work of a tick here, where that
            takes longer, before going on without one.
        least_s: seconds, never less,
        most_s: never more.
        tries: parcels that a peer may be late with in a row before it is not waited for any more, and
            that it must then be in time with in a row to be waited for again.
    """

    strict: bool = False
    factor: Annotated[float, Meta(ge=1)] = 4.0
    least_s: Annotated[float, Meta(gt=0)] = 0.1
    most_s: Annotated[float, Meta(gt=0)] = 30.0
    tries: Annotated[int, Meta(ge=1)] = 3
