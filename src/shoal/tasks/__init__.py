"""Tasks: what one peer can do alone."""
