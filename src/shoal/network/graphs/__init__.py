"""Graphs: who can reach whom, one family a file."""
