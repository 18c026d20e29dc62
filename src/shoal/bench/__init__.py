"""Benchmarks: ratios to an honest floor, measured in one run."""
