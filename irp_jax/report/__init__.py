"""Output for people: the terminal, tables in Markdown, plots, the HTML page and model cards.

`plots` and `page` are imported only where something is drawn, because matplotlib and jinja2 belong
to an optional extra.
"""
