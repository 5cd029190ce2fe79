"""A trained network without what is done with it: its function, arrays, record and files."""
