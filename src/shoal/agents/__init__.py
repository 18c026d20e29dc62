"""Agents that speak and decide: language models, and scripted ones that are always called simulated."""
