"""The five nouns' contracts. Imports nothing of the other rooms."""

from . import tree
from .errors import BadInput, MissingExtra, RunFailed, ShoalError, need
from .inbox import Inbox
from .method import Context, Method, methods
from .net import Net, Outbox
from .part import Part, Registry, literal
from .random import Draws, philox
from .report import Report
from .rule import Attack, Rule, Scene, attacks, rules
from .task import Differentiable, Place, Task, Work, tasks
from .tick import Graph, Tick
from .time import Clock, Topology, clocks, topologies
from .wire import Coder, Frames, Layout, Link, Packer, Stage, codecs

__all__ = [
    "Attack", "BadInput", "Clock", "Coder", "Context", "Differentiable", "Draws", "Frames", "Graph",
    "Inbox",
    "Layout", "Link", "Method", "MissingExtra", "Net", "Outbox", "Packer", "Part", "Place",
    "Registry", "Report", "Rule", "RunFailed", "Scene", "ShoalError", "Stage", "Task", "Tick",
    "Topology", "Work", "attacks", "clocks", "codecs", "literal", "methods", "need", "philox",
    "rules", "tasks", "topologies", "tree",
]  # fmt: skip
