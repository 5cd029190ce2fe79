"""A trained network: its function, arrays and record, its files, and what it is measured on."""
