"""What the peers do together: one method a file."""
