# SPDX-License-Identifier: Apache-2.0
"""What the studio answers at all: which names, whose pages, and which of Gradio's addresses.

Gradio can do more than this page needs: take files from visitors, serve files by their paths, fetch
addresses for them, call any function by its name. Nothing of that passes here, and what does pass
leaves with headers that forbid a browser to ask any other server for anything.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Collection, Iterator, MutableMapping
from typing import Any
from urllib.parse import unquote

from ..watch.gate import LOCAL, allowed

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

OURS = re.compile(r"/(thumb|live|file)/.+|/gradio_api/file=.+")
"""Addresses of this package; see :mod:`sdi_gs.studio.server`."""

GRADIO = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/assets/[\w./@+-]+|/static/[\w./@+-]+"
    r"|/svelte/[\w./@+-]+|/gradio_api/(startup-events|theme\.css|queue/data|heartbeat/\w+)"
)
"""What of Gradio is asked with GET: the page, its scripts, and the stream of what happens."""

POSTED = re.compile(r"/gradio_api/(queue/join|cancel|reset/?)")
"""And with POST: an event of the page."""

PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "frame-src 'self'; frame-ancestors 'self'; object-src 'none'; base-uri 'self'; "
    "form-action 'self'"
)
"""The page and its scripts come from here, and ask nobody else."""

FILE_POLICY = (
    "sandbox allow-scripts allow-downloads; default-src 'none'; "
    "script-src 'unsafe-inline' 'unsafe-eval' blob: data:; style-src 'unsafe-inline'; "
    "img-src data: blob:; media-src data: blob:; font-src data:; connect-src data: blob:; "
    "worker-src blob: data:; frame-ancestors 'self'"
)
"""What a run has left may have come from anywhere: a page of it is a stranger to this one."""

REFUSAL = (
    "This studio answers to its own names only, and only to its own page. To use it from another "
    "machine, forward the port: ssh -L 7860:127.0.0.1:7860 HOST, then open http://localhost:7860\n"
)


class Names(Collection[str]):
    """The names that the studio goes by. ``host`` is what it was told to serve besides this machine
    alone: then any address in figures will do, which no foreign page can point here by a name."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.wide = host not in LOCAL
        self.known = {*LOCAL}
        if self.wide:
            self.known |= {host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        return name.lower() in self.known or (self.wide and _in_figures(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)


def _in_figures(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


class Gate:
    """Asks of every request who sends it and what it wants, before anything else sees it."""

    def __init__(self, app: App, names: Names | None = None) -> None:
        self.app, self.names = app, names or Names()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})  # the page has none
            return
        headers = _headers(scope)
        if not self._known(headers) or _crosses(headers, scope["method"]):
            await _answer(send, 403, REFUSAL)
            return
        path = scope["path"]
        if not _offered(scope["method"], path):
            await _answer(send, 404, "There is nothing here.\n")
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = _with_policy(list(message.get("headers", ())))
            await send(message)

        await self.app(scope, receive, sending)

    def _known(self, headers: dict[str, list[str]]) -> bool:
        hosts, origins = headers.get("host", []), headers.get("origin", [])
        if len(hosts) != 1 or len(origins) > 1:
            return False
        return allowed(hosts[0], origins[0] if origins else None, self.names)


def _headers(scope: Message) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return found


def _crosses(headers: dict[str, list[str]], method: str) -> bool:
    """Whether a browser says that another page asks: only to open this one is that allowed."""
    site = headers.get("sec-fetch-site", ["none"])[-1]
    mode = headers.get("sec-fetch-mode", [""])[-1]
    dest = headers.get("sec-fetch-dest", [""])[-1]
    # A page of a run is a stranger in a frame of this one, and its links are pressed there; the
    # policies keep what they lead to out of the frames of any other page.
    opening = method in ("GET", "HEAD") and mode == "navigate" and dest in ("document", "iframe")
    return site not in ("none", "same-origin") and not opening


def _offered(method: str, path: str) -> bool:
    if ".." in path or "\\" in path or "\0" in path or ".." in unquote(unquote(path)):
        return False
    if method == "POST":
        return bool(POSTED.fullmatch(path))
    return method in ("GET", "HEAD") and bool(OURS.fullmatch(path) or GRADIO.fullmatch(path))


def _with_policy(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    dropped = (b"access-control-allow-origin", b"access-control-allow-credentials")
    kept = [(name, value) for name, value in headers if name.lower() not in dropped]
    names = {name.lower() for name, _ in kept}
    more = {
        b"content-security-policy": PAGE_POLICY.encode(),
        b"x-content-type-options": b"nosniff",
        b"referrer-policy": b"no-referrer",
        b"cross-origin-resource-policy": b"same-origin",
    }
    return kept + [(name, value) for name, value in more.items() if name not in names]


async def _answer(send: Send, status: int, text: str) -> None:
    body = text.encode()
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"text/plain; charset=utf-8"),
                (b"content-length", str(len(body)).encode()),
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})
