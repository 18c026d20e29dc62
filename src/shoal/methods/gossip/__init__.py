"""Fully decentralised training over graphs."""
