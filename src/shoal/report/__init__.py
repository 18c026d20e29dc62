"""What came out: tables, saved runs, plots, pages and the terminal."""
