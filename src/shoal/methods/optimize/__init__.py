"""Optimisation without projections, gradients or second derivatives."""
