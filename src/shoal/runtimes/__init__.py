"""Where a run runs: ``local`` (all peers stacked in one process)."""
