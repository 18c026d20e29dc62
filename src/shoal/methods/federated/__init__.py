"""Training with a pooling aggregator."""
