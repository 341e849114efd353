# SPDX-License-Identifier: Apache-2.0
"""Who is answered, and with what: the gate by itself, and the whole studio behind it."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from pathlib import Path

import pytest

from sdi_gs.errors import UserError
from sdi_gs.studio import gate, server
from sdi_gs.studio.gate import Names
from sdi_gs.studio.outputs import Outputs

from .conftest import Served, lay, picture


class Answer:
    def __init__(self, got: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = got.status, got.headers, got.read()

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")


def ask(
    served: Served, path: str, method: str = "GET", body: str | None = None, **headers: str
) -> Answer:
    """What a program gets that sends exactly these headers; ``a_b`` is written A-B."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.putrequest(method, path, skip_host="Host" in sent)
    for name, value in sent.items():
        connection.putheader(name, value)
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
        connection.putheader("Content-Type", "application/json")
    connection.endheaders(None if body is None else body.encode())
    return Answer(connection.getresponse())


@pytest.fixture(scope="module")
def filled(served: Served) -> Served:
    """The studio with a finished-looking run, a secret beside the folder, and links to it."""
    run = lay(served.outputs.path / "mug, 50% red")
    outside = served.outputs.path.parent / "outside"
    outside.mkdir()
    (outside / "secret.png").write_text("the secret")
    picture(run / "preview.png")
    (run / "final.ply").write_bytes(b"ply\n")
    (run / "final.html").write_text("<script>fetch('/')</script>")
    (run / "link.png").symlink_to(outside / "secret.png")
    (run / "stats.jsonl").write_text("")
    (served.outputs.path / "away").symlink_to(outside)
    return served


RUN = "/file/mug%2C%2050%25%20red"


def test_the_page_and_the_files_are_served(filled: Served) -> None:
    page = ask(filled, "/")
    assert page.status == 200
    assert "gradio" in page.text
    assert ask(filled, f"{RUN}/final.ply").body == b"ply\n"
    shown = ask(filled, f"{RUN}/preview.png")
    assert shown.headers["Content-Type"] == "image/png"
    assert "Content-Disposition" not in shown.headers
    saved = ask(filled, f"{RUN}/preview.png?save=1").headers["Content-Disposition"]
    assert saved == "attachment; filename*=utf-8''mug%2C%2050%25%20red-preview.png"
    small = ask(filled, "/thumb/mug%2C%2050%25%20red")
    assert small.headers["Content-Type"] == "image/jpeg"
    assert ask(filled, "/thumb/base").status == 404
    whole = f"/gradio_api/file={filled.outputs.path}/mug, 50%25 red/final.ply"
    assert ask(filled, whole.replace(" ", "%20")).body == b"ply\n"


SECRET = [
    "/file/../outside/secret.png", "/file/%2e%2e/outside/secret.png",
    "/file/..%2foutside/secret.png",
    "/file/%252e%252e/outside/secret.png", "/file/away/secret.png", f"{RUN}/link.png",
    f"{RUN}/..%2f..%2foutside%2fsecret.png", f"{RUN}/%2fetc%2fpasswd", f"{RUN}//etc/passwd",
    "/file//etc/passwd", f"{RUN}/../../../outside/secret.png", f"{RUN}/..%5c..%5csecret.png",
    "/file/.studio/gallery.json", "/file/.studio/jobs%2f000001", "/live/0",
    "/live/..", "/thumb/away",
    "/thumb/..", "/file/report.html?run=away",
    "/file/report.html?run=..%2foutside", "/file/report.html",
    "/file/report.html?run=base&run=base",
    "/static/../../../../etc/passwd",
    "/assets/..%2f..%2f..%2fetc%2fpasswd", "/static/%2e%2e/%2e%2e/app.py",
]  # fmt: skip

OF_GRADIO = [
    "/gradio_api/file=/etc/passwd", "/gradio_api/file=/elsewhere/base/config.yaml",
    "/gradio_api/file=OUTSIDE/secret.png",
    "/gradio_api/file=OUTPUTS/away/secret.png",
    "/gradio_api/file=OUTPUTS/base/../../outside/secret.png",
    "/gradio_api/file=OUTPUTS/.studio/gallery.json", "/gradio_api/file=http://127.0.0.1:1/x",
    "/file=/etc/passwd", "/gradio_api/file//etc/passwd", "/gradio_api/proxy=http://127.0.0.1:1/",
    "/proxy=http://127.0.0.1:1/", "/gradio_api/info", "/gradio_api/openapi.json", "/docs",
    "/openapi.json", "/monitoring", "/gradio_api/runs", "/gradio_api/upload_progress?upload_id=1",
    "/gradio_api/call/make/1", "/gradio_api/vibe-code/", "/gradio_api/custom_component/1/c/c/x.js",
    "/gradio_api/deep_link", "/gradio_api/run-history/records", "/token", "/login", "/user",
]  # fmt: skip


def test_a_report_follows_no_link(filled: Served) -> None:
    """It would have the picture of another place inside."""
    got = ask(filled, "/file/report.html?run=mug%2C%2050%25%20red")
    assert got.status == 404
    assert "link.png in mug, 50% red is a symbolic link" in got.text


@pytest.mark.parametrize("path", [*SECRET, *OF_GRADIO])
def test_nothing_outside_of_the_runs_is_readable(filled: Served, path: str) -> None:
    path = path.replace("OUTPUTS", str(filled.outputs.path))
    path = path.replace("OUTSIDE", str(filled.outputs.path.parent / "outside"))
    got = ask(filled, path)
    assert got.status in (404, 409), got.text[:200]
    assert "the secret" not in got.text
    assert "root:" not in got.text


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/upload", "/upload", "/gradio_api/call/make", "/gradio_api/run/make", "/login",
     "/gradio_api/api/make", "/gradio_api/component_server", "/gradio_api/process_recording",
     "/gradio_api/stream/1", "/gradio_api/vibe-edit", "/", "/file/report.html",
     "/file/base/config.yaml"],
)  # fmt: skip
def test_nothing_is_taken_but_events_of_the_page(filled: Served, path: str) -> None:
    assert ask(filled, path, "POST", "{}").status == 404
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert ask(filled, path, method).status == 404


FOREIGN = [
    {"Host": "evil.example"},
    {"Host": "evil.example:80", "Origin": "http://evil.example:80"},
    {"Host": "127.0.0.1.evil.example"},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},  # another server of this machine
    {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors", "Sec_Fetch_Dest": "image"},
    {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "cors", "Sec_Fetch_Dest": "empty"},
    {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "object"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/"), ("GET", f"{RUN}/preview.png"), ("POST", "/gradio_api/queue/join"),
     ("GET", "/gradio_api/queue/data?session_hash=a"), ("GET", "/gradio_api/heartbeat/a")],
)  # fmt: skip
def test_a_foreign_page_is_refused(
    filled: Served, headers: dict[str, str], method: str, path: str
) -> None:
    body = (
        json.dumps({"data": [], "fn_index": 0, "session_hash": "a"}) if method == "POST" else None
    )
    got = ask(filled, path, method, body, **headers)
    assert got.status == 403
    assert "ssh -L" in got.text


@pytest.mark.parametrize(
    "headers",
    [
        [(b"host", b"localhost"), (b"host", b"evil.example")],
        [(b"host", b"localhost"), (b"origin", b"http://localhost"), (b"origin", b"http://evil")],
        [],
    ],
)
def test_two_names_at_once_are_refused(headers: list[tuple[bytes, bytes]]) -> None:
    """By the gate itself, whatever the server before it lets through."""
    scope = {"type": "http", "method": "GET", "path": "/", "headers": headers}
    assert refused(scope)[0]["status"] == 403


def refused(scope: gate.Message) -> list[gate.Message]:
    """What the gate itself answers."""
    sent: list[gate.Message] = []

    async def app(scope: gate.Message, receive: gate.Receive, send: gate.Send) -> None:
        raise AssertionError("it passed")

    async def receive() -> gate.Message:
        return {}

    async def send(message: gate.Message) -> None:
        sent.append(message)

    asyncio.run(gate.Gate(app)(scope, receive, send))
    return sent


def test_a_program_without_a_name_for_us_is_refused(filled: Served) -> None:
    with socket.create_connection(("127.0.0.1", filled.port), timeout=20) as raw:
        raw.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert b" 403 " in raw.recv(100)


def test_a_link_from_another_page_opens_the_studio(filled: Served) -> None:
    """As a click does; no script of that page can read or press anything."""
    click = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate",
             "Sec_Fetch_Dest": "document"}  # fmt: skip
    assert ask(filled, "/?run=base", **click).status == 200
    event = ask(filled, "/gradio_api/queue/join", "POST", "{}", **click)
    assert event.status == 403


def test_the_page_may_ask_nobody_else_and_pages_of_runs_may_ask_nobody(filled: Served) -> None:
    page = ask(filled, "/").headers
    assert "default-src 'self';" in page["Content-Security-Policy"]
    assert "frame-ancestors 'self'" in page["Content-Security-Policy"]
    assert "Access-Control-Allow-Origin" not in page
    made = ask(filled, f"{RUN}/final.html").headers
    assert made["Content-Type"].startswith("text/html")
    policy = made.get_all("Content-Security-Policy")
    assert policy == [gate.FILE_POLICY]
    assert "sandbox allow-scripts" in policy[0]
    assert "allow-same-origin" not in policy[0]
    assert "default-src 'none'" in policy[0]
    for headers in (page, made):
        assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("host", "name", "known"),
    [
        ("127.0.0.1", "localhost", True),
        ("127.0.0.1", "192.168.1.7", False),
        ("127.0.0.1", "evil.example", False),
        ("0.0.0.0", "192.168.1.7", True),
        ("0.0.0.0", "fe80::1", True),
        ("0.0.0.0", "evil.example", False),
        ("studio.lan", "studio.lan", True),
        ("studio.lan", "evil.example", False),
    ],
)
def test_names(host: str, name: str, known: bool) -> None:
    assert (name in Names(host)) == known


def test_a_websocket_is_not_opened() -> None:
    scope = {"type": "websocket", "path": "/", "headers": [(b"host", b"localhost")]}
    assert refused(scope) == [{"type": "websocket.close", "code": 1008}]


def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(UserError, match=rf"--port {port} cannot be used .* in use; name a free"),
            server.listen("127.0.0.1", port),
        ):
            pass
        monkeypatch.setattr(server, "PORT", port)
        with server.listen("127.0.0.1", None) as other:
            assert port < other.getsockname()[1] < port + server.TRIES


def test_the_address_can_be_typed() -> None:
    with server.listen("127.0.0.1", None) as here:
        port = here.getsockname()[1]
        assert server.address_of(here) == f"http://127.0.0.1:{port}"
    with server.listen("0.0.0.0", None) as wide:
        told = server.address_of(wide)
        assert "0.0.0.0" not in told
        assert told.split(":")[1].removeprefix("//").lower() in Names("0.0.0.0")


def test_other_machines_are_let_in_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gradio")
    monkeypatch.setattr(server, "application", lambda studio, names: names)
    monkeypatch.setattr(server, "_run", lambda app, listening: None)
    said: list[str] = []
    server.serve(tmp_path / "outputs", "127.0.0.1", None, said.append)
    assert not any("warning" in line for line in said)
    server.serve(tmp_path / "outputs", "0.0.0.0", None, said.append)
    assert any("there is no password" in line for line in said)
    assert "/outputs" in said[-1]


def test_a_host_that_is_not_ours() -> None:
    with pytest.raises(UserError, match="--host"), server.listen("no.such.host.invalid", None):
        pass
    with (
        pytest.raises(UserError, match=r"cannot be used at 192\.0\.2\.1"),
        server.listen("192.0.2.1", 7999),
    ):
        pass


def test_two_studios_on_one_folder(runs: Outputs) -> None:
    (runs.own / "address.json").write_text('{"address": "http://127.0.0.1:7861"}')
    with (
        server.alone(runs),
        pytest.raises(UserError, match=r"serves .*outputs at http://127\.0\.0\.1:7861: use that"),
        server.alone(runs),
    ):
        pass
    with server.alone(runs):
        pass


def test_without_gradio_the_command_is_told(
    sdi_gs: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.importlib.util, "find_spec", lambda name: None)
    said = sdi_gs("studio", tmp_path / "outputs")  # type: ignore[operator]
    assert said.code == 2
    assert "pip install -e '.[studio]'" in said.err
    assert not (tmp_path / "outputs").exists()
