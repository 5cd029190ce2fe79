"""Command lines: flags become a typed object, one call does the work."""
