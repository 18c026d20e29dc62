"""One module a claim, named by the system's slug; each is imported only when it is asked for."""
