"""What people look at: the terminal, tables, plots."""
