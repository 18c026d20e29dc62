"""Who talks to whom, and what happens on the way."""
