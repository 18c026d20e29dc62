"""Mixing weights on a graph, and the checks that methods rely on."""

from .base import Weighting, check_weights, make_graph, weightings
from .optimal import optimal_rates

__all__ = ["Weighting", "check_weights", "make_graph", "optimal_rates", "weightings"]
