"""One claim a file, named by its system's slug."""
