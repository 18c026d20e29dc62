"""What peers do together to know whom to trust."""
