"""A reporter for tests that prints nothing."""


class Silent:
    """A reporter that stores notes and epochs and prints nothing."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.rows: list[dict] = []

    def note(self, message):
        self.notes.append(message)

    def begin(self, config, plan, done): ...

    def progress(self, steps, images_per_s, metrics): ...

    def back_to(self, done): ...

    def epoch(self, row):
        self.rows.append(row)

    def attacking(self, name, robust): ...

    def evaluating(self, done, total, robust): ...

    def end(self, results): ...
