# SPDX-License-Identifier: Apache-2.0
"""The server of the studio: its gate, the files of the runs, and the page that Gradio draws."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from representations.files import write_bytes

from ..artefacts.holder import Held, held
from ..errors import UserError
from ..pages import run as report_pages
from ..pages.facts import Facts, read
from ..watch.gate import LOCAL
from . import gallery, jobs, orders
from .desk import Studio
from .gate import FILE_POLICY, Gate, Names
from .outputs import Outputs, Refused, opened
from .queue import Queue

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

HOST = "127.0.0.1"
PORT = 7860
TRIES = 20  # ports from PORT on, where none was asked for
INLINE = {
    ".png": "image/png", ".jpg": "image/jpeg", ".gif": "image/gif", ".mp4": "video/mp4",
    ".html": "text/html; charset=utf-8",
}  # fmt: skip
"""What a browser shows; anything else it keeps as a file."""

MOST_COMPARED = 6
MISSING = (
    "the studio needs gradio, which is not installed: .venv/bin/pip install -e '.[studio]' in a "
    "checkout, or pip install 'sdi-gs[studio]'"
)


def require_gradio() -> None:
    """UserError where the extra is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError(MISSING)


def serve(folder: Path, host: str, port: int | None, say: Callable[[str], None]) -> None:
    """Serve the outputs folder ``folder`` until Ctrl-C. What runs then goes on.

    Args:
        folder: the outputs folder; made where it is missing.
        host: the address to listen at; 127.0.0.1 is this machine alone.
        port: None takes the first free one from PORT on.
        say: takes what is told in the terminal.

    Raises UserError: no gradio, a folder that cannot be written, a port that is taken, another
    studio on the folder.
    """
    require_gradio()
    outputs = opened(folder)
    with ExitStack() as stack:
        stack.enter_context(alone(outputs))
        listening = stack.enter_context(listen(host, port))
        address = address_of(listening)
        write_bytes(outputs.own / "address.json", json.dumps({"address": address}).encode())
        if host not in LOCAL:
            say(
                f"warning: --host {host} lets everybody who reaches this machine use the studio, "
                "see all runs of the folder and start new ones; there is no password"
            )
        say("opening the studio")
        studio = Studio(outputs, Queue(outputs), gallery.Gallery(outputs))
        app = application(studio, Names(host))
        studio.queue.begin()
        # So that the list is there before somebody asks for it.
        threading.Thread(target=studio.gallery.entries, daemon=True, name="sdi-gs gallery").start()
        stack.callback(studio.queue.end)
        say(f"{address}  (runs in {outputs.path}; Ctrl-C ends the page, runs go on)")
        _run(app, listening)


@contextmanager
def alone(outputs: Outputs) -> Iterator[None]:
    """Be the only studio of a folder. UserError says where the other one serves."""
    with ExitStack() as stack:
        try:
            stack.enter_context(held(outputs.own, "studio"))
        except Held as error:
            raise UserError(
                f"another studio serves {outputs.path}{_address(outputs)}: use that one, end it "
                f"with Ctrl-C, or name another folder ({error})"
            ) from None
        yield


def _address(outputs: Outputs) -> str:
    try:
        told = json.loads((outputs.own / "address.json").read_text(encoding="utf-8"))["address"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f" at {told}"


@contextmanager
def listen(host: str, port: int | None) -> Iterator[socket.socket]:
    """A socket that listens. UserError where the port is taken or the address is not ours."""
    wanted = range(PORT, PORT + TRIES) if port is None else (port,)
    for number in wanted:
        try:
            family, _, _, _, place = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
            made = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            raise UserError(
                f"--host {host} is no address of this machine ({error.strerror or error}); leave "
                "it out to serve this machine alone"
            ) from None
        try:
            if os.name == "posix":
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(place)
            made.listen(128)
        except OSError as error:
            made.close()
            last = error
            continue
        with made:
            yield made
        return
    tried = f"--port {port}" if port is not None else f"every port from {PORT} to {wanted[-1]}"
    raise UserError(
        f"{tried} cannot be used at {host}: {last.strerror or last}; name a free one, such as "
        f"--port {(port or wanted[-1]) % 65535 + 1}"
    )


def address_of(listening: socket.socket) -> str:
    """What is typed into a browser."""
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # all of this machine's
        host = socket.gethostname()
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"


def _run(app: Any, listening: socket.socket) -> None:
    import uvicorn

    settings = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=1, server_header=False
    )
    uvicorn.Server(settings).run(sockets=[listening])


def application(studio: Studio, names: Names) -> Gate:
    """The whole of what is served, behind its gate."""
    from fastapi import FastAPI

    from .page import mount

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    add_files(app, studio)
    return Gate(mount(app, studio), names)


def add_files(app: FastAPI, studio: Studio) -> None:
    """The addresses of what runs have left, and of pages that are made of it."""
    files = Files(studio.outputs, studio.queue)
    for path, answer in (
        ("/thumb/{name}", files.thumb),
        ("/live/{number:int}", files.live),
        ("/file/report.html", files.report),
        ("/file/{name}/{inner:path}", files.file),
        ("/gradio_api/file={path:path}", files.path),
    ):
        app.add_route(path, answer, methods=["GET", "HEAD"])


@dataclass(frozen=True)
class Files:
    """Answers with what lies in the outputs folder. Starlette calls these in threads."""

    outputs: Outputs
    queue: Queue

    def thumb(self, request: Request) -> Response:
        from starlette.responses import Response

        try:
            data = gallery.thumbnail(self.outputs, request.path_params["name"])
        except UserError as error:
            return told(error)
        if data is None:  # what it looked like last, of a run that has no preview yet
            drawn = map(self._live, self.queue.numbers(request.path_params["name"]))
            data = next((picture for picture in drawn if picture is not None), None)
        return _picture(data) if data is not None else Response(status_code=404)

    def live(self, request: Request) -> Response:
        from starlette.responses import Response

        data = self._live(request.path_params["number"])
        return _picture(data) if data is not None else Response(status_code=404)

    def _live(self, number: int) -> bytes | None:
        path = jobs.folder(self.outputs.jobs, number) / "live.jpg"
        if path.is_symlink() or not path.is_file():
            return None
        return path.read_bytes()

    def file(self, request: Request) -> Response:
        from starlette.responses import FileResponse

        name, inner = request.path_params["name"], request.path_params["inner"]
        try:
            path = self.outputs.file(name, inner)
        except UserError as error:
            return told(error)
        kind = INLINE.get(path.suffix.lower())
        headers = dict(PAGE_HEADERS)
        if kind is None or "save" in request.query_params:
            saved = quote(f"{name}-{path.name}", safe="")
            headers["Content-Disposition"] = f"attachment; filename*=utf-8''{saved}"
        return FileResponse(path, media_type=kind or "application/octet-stream", headers=headers)

    def path(self, request: Request) -> Response:
        """A file of a run by its whole path, which is how Gradio's viewer names it. Stands in the
        place of Gradio's own address for files."""
        from starlette.responses import FileResponse

        given = Path("/", request.path_params["path"])
        try:
            if given.parent.parent != self.outputs.path:
                raise Refused("that is no file of a run")
            found = self.outputs.file(given.parent.name, given.name)
        except UserError as error:
            return told(error)
        return FileResponse(found, media_type="application/octet-stream", headers=PAGE_HEADERS)

    def report(self, request: Request) -> Response:
        """The report of a run, or one page for several. It stands where its links to the files of
        the runs are right."""
        names = request.query_params.getlist("run")
        if not 1 <= len(set(names)) == len(names) <= MOST_COMPARED:
            return told(UserError(f"one run is shown, or two to {MOST_COMPARED} that differ"))

        def made() -> str:
            found = [facts(self.outputs, name) for name in names]
            folder = self.outputs.path
            if len(found) == 1:
                return report_pages.one(found[0], folder)
            return report_pages.many(found, folder)

        return _page(made)


PAGE_HEADERS = {"Content-Security-Policy": FILE_POLICY, "Cache-Control": "no-store"}


def told(error: UserError) -> Response:
    """What a browser shows where there is nothing to show."""
    from starlette.responses import PlainTextResponse

    status = 404 if isinstance(error, Refused) else 409
    return PlainTextResponse(f"{error}\n", status, PAGE_HEADERS)


def _picture(data: bytes) -> Response:
    from starlette.responses import Response

    return Response(data, media_type="image/jpeg", headers={"Cache-Control": "max-age=3600"})


def _page(make: Callable[[], str]) -> Response:
    from starlette.responses import HTMLResponse

    try:
        return HTMLResponse(make(), headers=PAGE_HEADERS)
    except UserError as error:
        return told(error)
    except OSError as error:
        return told(UserError(f"a file of the run cannot be read: {error.strerror or error}"))


def facts(outputs: Outputs, name: str) -> Facts:
    """What the run ``name`` has left. UserError where the studio does not open it."""
    run = outputs.whole(name)
    orders.settings_of(run)
    return read(run)
