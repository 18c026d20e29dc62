"""Training that hardly communicates."""
