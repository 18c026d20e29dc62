"""Trials of mechanisms: simulated, on a loopback testbed, on a few live peers, on all of them."""
