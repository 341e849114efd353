# SPDX-License-Identifier: Apache-2.0
"""The page answers browsers that asked for this machine, and no foreign page in one of them."""

from __future__ import annotations

import gzip
import http.client
from collections.abc import Iterator

import pytest

from sdi_gs.watch.gate import _titled, allowed


@pytest.mark.parametrize(
    ("host", "origin", "passes"),
    [
        ("127.0.0.1:8080", None, True),
        ("localhost:8080", None, True),
        ("[::1]:8080", "http://[::1]:8080", True),
        ("localhost:9999", "http://localhost:9999", True),  # a forwarded port
        ("LOCALHOST:8080", "http://localhost:8080", True),
        ("localhost:8080", "http://localhost:3000", False),  # another server of this machine
        ("localhost:8080", "https://evil.example", False),
        ("localhost:8080", "null", False),  # a page in a sandbox
        ("localhost:8080", "", False),
        ("evil.example:8080", "http://evil.example:8080", False),  # DNS rebinding
        ("evil.example:8080", None, False),
        ("127.0.0.1.evil.example", None, False),
        ("localhost@evil.example", None, False),
        ("evil.example#localhost", None, False),
        ("[", None, False),
        ("", None, False),
        (None, None, False),
    ],
)
def test_who_may_pass(host: str | None, origin: str | None, passes: bool) -> None:
    assert allowed(host, origin) == passes


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    pytest.importorskip("viser")
    from sdi_gs.watch.viewer import Page

    page = Page(8099)
    yield int(page.address.rpartition(":")[2])
    page.close()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:1"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "localhost", "Origin": "http://evil.example"}, 403),
    ],
)
def test_the_server_asks_before_it_answers(port: int, headers: dict[str, str], status: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/", headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode(errors="replace")
    assert answer.status == status, text[:200]
    if status == 403:
        assert "ssh -L" in text


@pytest.mark.parametrize("foreign", [False, True])
def test_a_foreign_page_opens_no_websocket(port: int, foreign: bool) -> None:
    import viser
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect
    from websockets.typing import Origin, Subprotocol

    def attempt() -> bytes | str:
        origin = "http://evil.example" if foreign else f"http://127.0.0.1:{port}"
        with connect(
            f"ws://127.0.0.1:{port}", origin=Origin(origin), compression=None,
            subprotocols=[Subprotocol(f"viser-v{viser.__version__}")], max_size=None,
        ) as socket:  # fmt: skip
            return socket.recv(timeout=20)

    if not foreign:
        assert len(attempt()) > 0
        return
    with pytest.raises(InvalidStatus) as caught:
        attempt()
    assert caught.value.response.status_code == 403


def test_a_page_has_the_title_of_what_it_shows() -> None:
    """Packed or not, escaped, with the length that is sent; other files stay as they are."""
    from websockets.datastructures import Headers
    from websockets.http11 import Response

    plain = b"<html><title>Viser</title><p>Viser</p>"
    wanted = b"<html><title>a &lt;b&gt; mug \\1</title><p>Viser</p>"
    for packed in (False, True):
        headers = Headers({"Content-Type": "text/html; charset=utf-8", "Content-Length": "9"})
        headers["Content-Encoding"] = "gzip" if packed else "identity"
        body = gzip.compress(plain) if packed else plain
        made = _titled(Response(200, "OK", headers, body), "a <b> mug \\1")
        assert (gzip.decompress(made.body) if packed else made.body) == wanted
        assert made.headers.get_all("Content-Length") == [str(len(made.body))]
    script = Response(200, "OK", Headers({"Content-Type": "text/javascript"}), plain)
    assert _titled(script, "x").body == plain
