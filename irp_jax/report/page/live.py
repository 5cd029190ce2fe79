"""Follows runs while they train: a page on this machine, and a view in the terminal.

Both read the files of the runs and nothing else. They start before a run, go on after it has ended
or has been killed, and follow any number of runs.
"""

import contextlib
import hashlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from irp_jax.errors import UserError
from irp_jax.report.collect import Found, Run, Unfinished, collect
from irp_jax.report.page import html

HOST = "127.0.0.1"
"""The page is served to this machine only."""

EVERY = 2.0
"""Seconds between two looks at the files."""


def stamp(places: Sequence[Path]) -> str:
    """Returns a digest that changes when a file of results changes."""
    found = hashlib.sha256()
    for place in places:
        for path in [place] if place.is_file() else sorted(place.rglob("*.json*")):
            with contextlib.suppress(OSError):  # a file may be replaced at this moment
                about = path.stat()
                found.update(f"{path} {about.st_size} {about.st_mtime_ns}\n".encode())
    return found.hexdigest()


class _Pages:
    """The page of some places. It is written again only when a file has changed."""

    def __init__(self, places: Sequence[Path]) -> None:
        self._places, self._lock = places, threading.Lock()
        self._stamp, self._page = "", b""

    def stamp(self) -> bytes:
        return stamp(self._places).encode()

    def page(self) -> bytes:
        with self._lock:
            now = stamp(self._places)
            if now != self._stamp:
                self._page = html.render(collect(self._places), live=True).encode()
                self._stamp = now
            return self._page


class _Server(ThreadingHTTPServer):
    def handle_error(self, *about: Any) -> None:
        """Prints an error, unless a browser has closed its connection."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*about)


@contextlib.contextmanager
def serve(places: Sequence[str | Path], port: int = 0) -> Iterator[str]:
    """Serves the page of results within the block.

    The page loads itself again when a run has a new epoch or results.

    Args:
        places: folders of runs or of results, and files of results. They may be empty so far.
        port: the port; 0 takes a free one.

    Yields:
        The address of the page. Only this machine can open it.

    Raises:
        UserError: the port is in use, not allowed, or not in [0, 65535].
    """
    pages = _Pages([Path(place) for place in places])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers: dict[str, tuple[str, Callable[[], bytes]]] = {
                "/": ("text/html; charset=utf-8", pages.page),
                "/stamp": ("text/plain", pages.stamp),
            }
            # A page of another site may have a name that leads here. It must not read results.
            name = self.headers.get("Host", "").partition(":")[0]
            if self.path not in answers or name not in (HOST, "localhost"):
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            kind, answer = answers[self.path]
            content = answer()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Prints nothing."""

    if not 0 <= port <= 65535:
        raise UserError(f"--port must be in [0, 65535], got {port}")
    try:
        server = _Server((HOST, port), Handler)
    except OSError as error:
        raise UserError(
            f"cannot serve on port {port} ({error.strerror}): give another --port, or leave it out"
        ) from error
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


def follow(places: Sequence[str | Path], console: Console) -> None:
    """Shows the progress of runs in the terminal until it is interrupted.

    On a screen, a table is kept up to date. Elsewhere, a line is printed for each new epoch and
    each finished run.

    Args:
        places: as for `serve`.
        console: what to print on.
    """
    paths = [Path(place) for place in places]
    shown, seen = "", set[str]()
    with Live(console=console, auto_refresh=False) if console.is_terminal else _nothing() as screen:
        while True:
            now = stamp(paths)
            if now != shown:
                shown, found = now, collect(paths)
                if screen is not None:
                    screen.update(progress(found), refresh=True)
                else:
                    for line in [_running(run) for run in found.unfinished if run.epochs] + [
                        _finished(run) for run in found.runs
                    ]:
                        if line not in seen:
                            console.print(line)
                            seen.add(line)
            time.sleep(EVERY)


@contextlib.contextmanager
def _nothing() -> Iterator[None]:
    yield None


def _running(run: Unfinished) -> str:
    last = run.results["history"][-1]
    return (
        f"{run.name}: epoch {last['epoch']} of {run.results['epochs']}, natural "
        f"{last['natural']:.1%}, PGD-10 {last['pgd']:.1%}, cost {last['cost_ratio']:.4f}"
    )


def _finished(run: Run) -> str:
    accuracy = run.results["accuracy"]
    return f"{run.name}: finished, natural {accuracy['natural']:.2%}, PGD-10 {accuracy['pgd']:.2%}"


def progress(found: Found) -> Table:
    """Returns a terminal table with a row for each run, the unfinished ones first."""
    table = Table(title="Runs", title_justify="left")
    for title in ("run", "epoch", "natural", "PGD-10", "cost", "last epoch at"):
        table.add_column(title, justify="left" if title == "run" else "right")
    for run in found.unfinished:
        rows = run.results["history"]
        last = rows[-1] if rows else None
        table.add_row(
            run.name,
            f"{run.epochs} of {run.results['epochs']}",
            *(f"{last['natural']:.1%}", f"{last['pgd']:.1%}", f"{last['cost_ratio']:.4f}")
            if last
            else ("", "", ""),
            time.strftime("%T", time.localtime(run.changed)) if run.changed else "",
        )
    for done in found.runs:
        one = done.results
        table.add_row(
            done.name, "finished", f"{one['accuracy']['natural']:.2%}",
            f"{one['accuracy']['pgd']:.2%}", f"{one['cost'][one['budget']['kind'] + '_ratio']:.4f}",
            "",
        )  # fmt: skip
    return table
