"""Blocks of peers in processes of their own, on one machine or many, placed and restarted by Ray."""
