"""Tasks of finding: libraries, queries and what users click."""
