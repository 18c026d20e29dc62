"""Shoal: machine learning without a centre."""

__version__ = "0.1.0"
