"""Real machines: one peer a process, identities, transports, NAT traversal, membership and stores."""
