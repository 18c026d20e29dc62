"""Stacked models: the peers' models as the rows of one matrix [P, D]."""

from .base import Model, Stacked, models
from .rows import Batches

__all__ = ["Batches", "Model", "Stacked", "models"]
