"""Training that expects hostile peers."""
