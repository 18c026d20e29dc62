"""The 146 systems as data, and the claims that say whether each of them works."""
