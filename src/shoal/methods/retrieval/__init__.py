"""Searching and ranking together."""
