"""Whether a server answers: known within the limit, whatever the server or the network does."""

from __future__ import annotations

import contextlib
import http.server
import socket
import ssl
import threading
import time

import pytest
import torch
from tests._helpers.refusals import refused

from tutelage import connection, data, hub_files, models
from tutelage.errors import NetworkError
from tutelage.settings.data import DataSettings


@pytest.fixture(autouse=True)
def nobody_asked(monkeypatch):
    monkeypatch.setattr(connection, "_silent", {})
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hub(monkeypatch):
    """Let the Hub be at an address."""
    constants = pytest.importorskip("huggingface_hub.constants")

    def at(url, home):
        for name, value in (("HF_HUB_OFFLINE", False), ("ENDPOINT", url), ("HF_HUB_CACHE", str(home))):
            monkeypatch.setattr(constants, name, value)
        return constants

    return at


@contextlib.contextmanager
def answering(status):
    """A server that answers every request with a status; yields its URL and the paths that were asked for."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("status", [200, 401, 404, 405, 429, 500])
def test_a_refusal_is_an_answer(status):
    with answering(status) as (url, _):
        assert connection.why_unreachable(url) is None


def test_what_keeps_a_server_from_answering_is_named_and_remembered():
    with answering(503) as (url, asked):
        for _ in range(2):
            assert connection.why_unreachable(url) == f"{url[7:]} answers 503, Service Unavailable"
        assert len(asked) == 1
    with socket.create_server(("127.0.0.1", 0)) as server:  # It takes connections, and says nothing.
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        began = time.monotonic()
        assert connection.why_unreachable(url, limit=0.1) == f"{url[7:]} does not answer within 0.1 s"
        assert time.monotonic() - began < 1
    connection._silent.clear()
    assert connection.why_unreachable(url) == f"{url[7:]} refuses the connection"


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (socket.gaierror(-2, "Name or service not known"), "the name h cannot be resolved, as without a network"),
        (OSError("Tunnel connection failed: 403 Forbidden"), "the proxy refuses h: Tunnel connection failed: 403"),
        (ConnectionResetError(104, "Connection reset by peer"), "h: [Errno 104] Connection reset by peer"),
        (ssl.SSLCertVerificationError("self-signed"), None),  # The library may have other certificates.
    ],
)
def test_an_error_says_why(error, why):
    def ask(url, timeout):
        raise RuntimeError("a library's own") from error

    said = connection.why_unreachable("https://user:secret@h/name", ask=ask)
    assert said is None if why is None else said.startswith(why)


def test_a_lookup_without_an_end_is_not_waited_for():
    began, ended = time.monotonic(), threading.Event()
    said = connection.why_unreachable("https://h", ask=lambda url, timeout: int(ended.wait(5)), limit=0.05)
    ended.set()
    assert said == "h does not answer within 0.05 s"
    assert time.monotonic() - began < 2


def test_no_connection_waits_forever_within():
    with connection.no_endless_waits():
        assert socket.getdefaulttimeout() == connection.SILENCE
    assert socket.getdefaulttimeout() is None


def test_a_hub_that_is_away_is_told_and_its_kept_files_are_read(hub, tmp_path):
    with answering(503) as (url, asked):
        constants = hub(url, tmp_path)
        with refused(NetworkError, "model", got="answers 503", suggests=["HF_HOME", "a local copy"]):
            hub_files.folder_of("org/name", ["*.json"], what="model")
        kept = tmp_path / "models--org--name"
        (kept / "snapshots" / "0").mkdir(parents=True)
        (kept / "refs").mkdir()
        (kept / "refs" / "main").write_text("0")
        assert hub_files.folder_of("org/name", ["*.json"], what="model") == kept / "snapshots" / "0"
        assert asked == ["/api/models/org/name"]
        assert constants.HF_HUB_OFFLINE is False


def test_every_source_asks_whether_its_server_answers_before_its_library_does(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "why_unreachable", lambda url, **_: f"{url.split('/')[2]} is away")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    hub("https://hub", tmp_path)
    with refused(NetworkError, "model", got="download.pytorch.org is away", suggests=["weights=path", "TORCH_HOME"]):
        models.create("torchvision:resnet18.IMAGENET1K_V1")
    vision = pytest.importorskip("torchvision").datasets
    monkeypatch.setattr(vision.CIFAR10, "url", "https://data/cifar.tar.gz")
    with pytest.raises(FileNotFoundError, match=r"neither \(data is away\)"):
        data.open_data(DataSettings(source="torchvision:CIFAR10", root=str(tmp_path)))
    with refused(NetworkError, "data.source", got="shards is away"):
        data.open_data(DataSettings(source="webdataset:https://shards/a.tar"))
    pytest.importorskip("timm")
    with refused(NetworkError, "model", got="hub is away", suggests=["weights=path", "HF_HOME"]):
        models.create("timm:resnet18.a1_in1k")
    pytest.importorskip("datasets")
    with refused(NetworkError, "data.source", got="hub is away", suggests=["HF_HOME", "a local copy after hf:"]):
        data.open_data(DataSettings(source="hf:org/no-such-name"))
