"""What people look at: the terminal, tables, plots.

`plots` is imported where something is drawn: matplotlib is an extra of its own.
"""
