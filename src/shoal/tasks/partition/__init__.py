"""Which peer holds which rows of the data."""
