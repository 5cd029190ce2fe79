"""Output in the terminal: progress, and a file for each kind of table."""
