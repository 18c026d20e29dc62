"""Learning schemes put together from building blocks."""
