"""A small language of building blocks for learning schemes, and its compiler.

Source: Mittone, Tonci, Birke, Colonnelli, Medić, Bartolini, Esposito, Parisi, Beneventi, Polato,
Torquati, Benini, Aldinucci, "Experimenting with emerging RISC-V systems for decentralised machine
learning" (Computing Frontiers 2023) and its repository. There blocks become FastFlow C++; here a
:class:`Graph` becomes a method (``ffl-dsl``, which carries out its :class:`Program`) on a network, for
any runtime.

In Python, and as text (``;`` between blocks, ``#`` begins a comment)::

    Graph(Feedback(Parallel(train(epochs=2), TEST, workers=4), Reduce("fedavg"), Broadcast(), rounds=10))

    feedback(10)[
        parallel(4)[train(epochs=2); test];
        reduce(fedavg);
        broadcast
    ]

What the compiler understands: *master-worker* as above; *peer to peer*, where ``broadcast; reduce``
stand inside ``parallel``; a *tree*, ``parallel(2)[parallel(3)[infer]; combine]; combine``: leaves infer,
and each ``combine`` joins what comes from the level below, the last one in the control room.
"""

from .blocks import (
    COMBINE,
    INFER,
    INIT,
    TEST,
    Block,
    Broadcast,
    Feedback,
    Parallel,
    Reduce,
    Wrapper,
    train,
)
from .graph import Graph, hosts
from .program import Program, Step, program_of
from .text import parse, read

__all__ = [
    "COMBINE", "INFER", "INIT", "TEST", "Block", "Broadcast", "Feedback", "Graph", "Parallel", "Program",
    "Reduce", "Step", "Wrapper", "hosts", "parse", "program_of", "read", "train",
]  # fmt: skip
