"""Inference together: peers answer, judge each other and agree."""
