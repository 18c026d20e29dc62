"""What peers hold together: replicated state, a distributed hash table, content by hash, model versions."""
