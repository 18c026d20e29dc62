"""Clocks: what happens when. Rounds, participation, stragglers, churn and event clocks; they chain."""
