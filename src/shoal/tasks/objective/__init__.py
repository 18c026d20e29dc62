"""Objectives: functions with exact local gradients and, where there is one, a known optimum."""
