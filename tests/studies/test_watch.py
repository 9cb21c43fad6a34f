import http.client
import json
import shutil
import threading

import pytest
from tests._helpers import synthetic
from tests._helpers.refusals import refused

from tutelage import records
from tutelage.errors import InvalidValueError, NotFoundError
from tutelage.studies import watch
from tutelage.studies.watch import Server, Watched


@pytest.fixture
def running(tmp_path):
    folder = tmp_path / "run"
    synthetic.write_run(folder, status="running", length=3)
    manifest = json.loads((folder / records.MANIFEST).read_text())
    manifest["recipe"] = {**(manifest.get("recipe") or {}), "epochs": 10, "stages": []}
    records.write_json(folder / records.MANIFEST, manifest)
    return folder


@pytest.fixture
def served(running):
    with Server(Watched(running), 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, method="GET", path="/", **headers):
    asked = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    asked.putrequest(method, path, skip_host=True)
    for name, value in ({"Host": f"localhost:{server.server_port}"} | headers).items():
        if value is not None:
            asked.putheader(name.replace("_", "-"), value)
    asked.endheaders()
    answer = asked.getresponse()
    return answer, answer.read().decode()


def now(watched):
    watched._until = 0.0
    tag, page = watched.now()
    return tag, page.decode()


def grow(folder):
    epochs = list(records.read_epochs(folder))
    records.append_epoch(folder, {**epochs[-1], "epoch": len(epochs) + 1})


def test_the_page_grows_with_the_records_and_nothing_is_written(running):
    before = {path: path.read_bytes() for path in running.iterdir()}
    watched = Watched(running)
    tag, page = now(watched)
    assert "running: epoch 3 of 10, about" in page
    assert "connect-src &#39;self&#39;" in page or "connect-src 'self'" in page
    assert now(watched) == (tag, page)
    assert {path: path.read_bytes() for path in running.iterdir()} == before
    grow(running)
    newer, page = now(watched)
    assert newer != tag
    assert "running: epoch 4 of 10" in page


def test_a_page_is_made_again_only_when_records_changed(running, monkeypatch):
    watched = Watched(running)
    monkeypatch.setattr(watch.report, "read", lambda folder: pytest.fail("read again"))
    assert now(watched)[0] == watched.tag


def test_what_is_half_written_does_not_break_it(running):
    watched = Watched(running)
    _, good = now(watched)
    with (running / records.METRICS).open("a") as file:
        file.write('{"stage": 0, "epo')
    assert "epoch 3 of 10" in now(watched)[1]
    (running / records.MANIFEST).write_text('{"name')
    assert "</html>" in now(watched)[1]
    shutil.rmtree(running)
    assert "</html>" in now(watched)[1]
    assert "</html>" in good


def test_runs_of_a_comparison_are_followed(tmp_path):
    synthetic.write_comparison(tmp_path)
    watched = Watched(tmp_path)
    first = json.loads((tmp_path / records.COMPARISON).read_text())["entries"][0]["folder"]
    before, page = now(watched)
    assert "finished" in page.split('id="live"')[1].split("<")[0]
    grow(tmp_path / first)
    assert now(watched)[0] != before


def test_this_machine_alone_gets_one_page(served):
    assert served.server_address[0] == "127.0.0.1"
    answer, page = ask(served)
    assert answer.status == 200
    assert "running: epoch 3 of 10" in page
    for name, value in watch.HEADERS.items():
        assert answer.getheader(name) == value
    assert answer.getheader("Access-Control-Allow-Origin") is None
    again, body = ask(served, If_None_Match=answer.getheader("ETag"))
    assert (again.status, body) == (304, "")
    assert ask(served, "HEAD")[1] == ""


@pytest.mark.parametrize(
    ("method", "path", "host", "status"),
    [
        ("GET", "/", "example.com", 403),
        ("GET", "/", "localhost", 403),
        ("GET", "/", "localhost.example.com:{port}", 403),
        ("GET", "/", None, 403),
        ("GET", "/", "127.0.0.1:{port}", 200),
        ("GET", "/", "[::1]:{port}", 200),
        ("GET", "/manifest.json", "localhost:{port}", 404),
        ("GET", "/../manifest.json", "localhost:{port}", 404),
        ("GET", "/?x", "localhost:{port}", 404),
        ("POST", "/", "localhost:{port}", 405),
        ("DELETE", "/", "localhost:{port}", 405),
        ("OPTIONS", "/", "localhost:{port}", 405),
    ],
)
def test_everything_else_is_refused(served, method, path, host, status):
    answer, body = ask(served, method, path, Host=host and host.format(port=served.server_port))
    assert answer.status == status
    assert ("</html>" in body) == (status == 200)


def test_mistakes_are_told_before_it_serves(running, tmp_path, served):
    (tmp_path / "empty").mkdir()
    with refused(NotFoundError, "folder"):
        Watched(tmp_path / "empty")
    with refused(InvalidValueError, "--port", got=served.server_port, suggests="--port 0"):
        Server(served.watched, served.server_port)


def test_the_next_free_port_is_taken_by_default(served, monkeypatch):
    monkeypatch.setattr(watch, "PORT", served.server_port)
    with Server(served.watched) as other:
        assert other.server_port != served.server_port
