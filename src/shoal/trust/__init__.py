"""Reputation, contribution, incentives and the ledgers that keep them."""
