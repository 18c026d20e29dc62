"""Bandits: peers that choose arms and learn from their losses together."""
