"""Output for people: terminal output, tables, plots and model cards.

`plots` is imported only where something is drawn, because matplotlib is an optional extra.
"""
