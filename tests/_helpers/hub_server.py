"""A server on this machine that answers what the Hub's client asks to upload a folder and to fetch it."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40
FACTS = {"private": False, "tags": [], "downloads": 0, "likes": 0}


class Hub(ThreadingHTTPServer):
    """Repositories by name, each a mapping of files; a name in ``refused`` is answered by that status and code."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories, self.refused, self.asked = {}, {}, []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _answer(self, body=b"", status=200, **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Length": len(body), "Connection": "close", **headers}.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self):
        if length := self.headers.get("Content-Length"):
            return self.rfile.read(int(length))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _is_refused(self, name):
        if name in self.server.refused:
            status, code = self.server.refused[name]
            self._answer({"error": code}, status, X_Error_Code=code)
        return name in self.server.refused

    def do_POST(self):
        body, parts = self._body(), self.path.split("/")
        self.server.asked.append(self.path)
        name = "/".join(parts[3:5])
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if not self._is_refused(name):
                self.server.repositories.setdefault(name, {})
                self._answer({"url": f"{self.server.url}/{name}", "name": name, "id": name})
        elif "preupload" in parts:
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self._answer({"files": files})
        elif "commit" in parts:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    file = line["value"]
                    self.server.repositories[name][file["path"]] = base64.b64decode(file["content"])
            self._answer(
                {"success": True, "commitUrl": f"{self.server.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT}
            )
        else:
            self._answer({"errors": [], "warnings": []})

    def do_GET(self):
        parts = self.path.partition("?")[0].strip("/").split("/")
        self.server.asked.append(self.path)
        is_api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if is_api else parts[:2])
        if self._is_refused(name):
            return
        files = self.server.repositories.get(name)
        if files is None:
            self._answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        elif "tree" in parts:
            listed = [{"path": path, "size": len(content)} for path, content in files.items()]
            self._answer([{"type": "file", "oid": "0", **file} for file in listed])
        elif is_api and parts[-1] not in ("main", COMMIT, name):
            self._answer({"error": "Invalid rev"}, 404, X_Error_Code="RevisionNotFound")
        elif is_api:
            siblings = [{"rfilename": path} for path in files]
            self._answer({"id": name, "sha": COMMIT, "siblings": siblings, **FACTS})
        else:
            content = files["/".join(parts[4:])]
            tag = f'"{hashlib.sha1(content).hexdigest()}"'
            self._answer(content, ETag=tag, X_Repo_Commit=COMMIT)

    do_HEAD = do_GET


@contextmanager
def hub(monkeypatch, cache):
    """Serve while the client of this process asks this server, keeps what it fetches in ``cache`` and has a token."""
    from huggingface_hub import constants

    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
