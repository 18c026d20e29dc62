"""Robust aggregation: rules by which a receiver combines messages of which some may be hostile."""
