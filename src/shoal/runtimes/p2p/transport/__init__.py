"""Connections between real peers: one narrow interface, several ways to carry it."""
