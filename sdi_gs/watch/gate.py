# SPDX-License-Identifier: Apache-2.0
"""Who may open the page: browsers that asked for this machine, from a page of this server.

The server listens on this machine only, but a browser on it also runs foreign pages. One of them
could open a WebSocket here, which browsers allow, or be served under a name of its own that leads
here (DNS rebinding). It would see the shape and press the buttons. Its requests carry its own
name, in ``Host`` or in ``Origin``, and are refused.
"""

from __future__ import annotations

import gzip
import http
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from markupsafe import escape

LOCAL = ("127.0.0.1", "localhost", "::1")
REFUSAL = (
    "This page answers to the names 127.0.0.1 and localhost only, and only to itself. To look from "
    "another machine, forward the port: ssh -L 8080:127.0.0.1:8080 HOST, then open "
    "http://localhost:8080\n"
)


def allowed(host: str | None, origin: str | None, names: Collection[str] = LOCAL) -> bool:
    """Whether a request with these headers may pass, to a server that goes by ``names``. Programs
    that are no browser send no ``Origin``; a forwarded port may be any."""
    if host is None:
        return False
    try:
        if urlsplit(f"//{host}").hostname not in names:
            return False
        return origin is None or urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        return False


@contextmanager
def guarded(title: Callable[[], str] = lambda: "sdi-gs") -> Iterator[None]:
    """Every websockets server that is started within asks :func:`allowed` first, and its page has
    the ``title`` of when it is opened."""
    import websockets.asyncio.server as server

    start = server.serve

    def serve(*args: Any, process_request: Any = None, **more: Any) -> Any:
        return start(*args, process_request=_checked(process_request, title), **more)

    server.serve = serve  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        server.serve = start  # type: ignore[misc]


def _checked(
    answer: Callable[[Any, Any], Any] | None, title: Callable[[], str]
) -> Callable[[Any, Any], Any]:
    def process(connection: Any, request: Any) -> Any:
        hosts, origins = (request.headers.get_all(name) for name in ("Host", "Origin"))
        known = len(hosts) == 1 and len(origins) <= 1
        if not known or not allowed(hosts[0], origins[0] if origins else None):
            return connection.respond(http.HTTPStatus.FORBIDDEN, REFUSAL)
        answered = None if answer is None else answer(connection, request)
        return answered if answered is None else _titled(answered, title())

    return process


def _titled(response: Any, title: str) -> Any:
    """A page with another title; anything else as it is."""
    if not str(response.headers.get("Content-Type", "")).startswith("text/html"):
        return response
    packed = response.headers.get("Content-Encoding") == "gzip"
    body = gzip.decompress(response.body) if packed else response.body
    named = f"<title>{escape(title)}</title>".encode()
    body = _TITLE.sub(lambda _: named, body, count=1)
    response.body = gzip.compress(body, 1) if packed else body
    del response.headers["Content-Length"]
    response.headers["Content-Length"] = str(len(response.body))
    return response


_TITLE = re.compile(rb"<title>[^<]*</title>")
