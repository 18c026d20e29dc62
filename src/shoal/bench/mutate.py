"""Changes to valid bytes of the kinds that break parsers."""

from __future__ import annotations

import random

__all__ = ["mutate"]


def mutate(frame: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    """One to four changes of the kinds that break parsers."""
    data = bytearray(frame)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        at = draw.randrange(len(data) + 1)
        kind = draw.randrange(9)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << draw.randrange(8)
        elif kind == 1 and data:
            data[at % len(data)] = draw.choice((0, 1, 0x7F, 0x80, 0xC1, 0xDD, 0xDF, 0xFF))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + draw.randrange(1, 9)]
        elif kind == 4:
            data[at:at] = draw.randbytes(draw.randrange(1, 65))
        elif kind == 5:
            data[at:at] = data[at : at + 64] * draw.randrange(1, 5)
        elif kind == 6:
            data[at : at + 4] = draw.choice((0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)).to_bytes(4, "big")
        elif kind == 7:
            other = draw.choice(others)
            data[at:] = other[draw.randrange(len(other)) :]
        else:
            data = bytearray(draw.randbytes(draw.randrange(1, 200)))
    return bytes(data)
