"""The HTML page of results: one file with charts, tables and the details of each run.

`html` writes it. It is imported only where a page is written, because matplotlib and jinja2 belong
to an optional extra.
"""
