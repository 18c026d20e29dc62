"""Agents that talk along the edges of a graph."""
