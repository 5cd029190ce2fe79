"""Output for people: terminal output, tables, plots, model cards and the HTML page.

`plots` and `html` are imported only where something is drawn, because matplotlib and jinja2 belong
to an optional extra.
"""
