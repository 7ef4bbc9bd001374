"""The part of the Hugging Face Hub's HTTP interface that an upload uses, on the loopback."""

import base64
import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_token_of_the_test"


class Hub:
    """Repositories and their files in memory.

    Attributes:
      url: of the service.
      repos: files by path, by the name of a repository.
      private: names of private repositories.
      messages: of the commits.
      large: contents of large files by SHA-256.
    """

    def __init__(self):
        self.repos, self.private, self.messages, self.large = {}, set(), [], {}
        self.url = ""

    def commit(self, repo, lines):
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "header":
                self.messages.append(value["summary"])
            elif key == "file":
                self.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                self.repos[repo][value["path"]] = self.large[value["oid"]]
            else:
                raise AssertionError(f"{key} in a commit")


def _handler(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def body(self):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def answer(self, status, value=None):
            content = json.dumps(value or {}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self):
            body, path = self.body(), self.path.partition("?")[0]
            if path == "/api/validate-yaml":
                return self.answer(200, {"errors": [], "warnings": []})
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.answer(401, {"error": "Invalid credentials"})
            if path == "/api/repos/create":
                asked = json.loads(body)
                repo = f"{asked['organization']}/{asked['name']}"
                if asked.get("private") or asked.get("visibility") == "private":
                    hub.private.add(repo)
                hub.repos[repo] = {}
                return self.answer(200, {"url": f"{hub.url}/{repo}", "name": repo})
            if path.endswith(".git/info/lfs/objects/batch"):
                return self.answer(200, self.large_files(json.loads(body)))
            repo, action = path.removeprefix("/api/models/").rsplit("/", 2)[:2]
            if action == "preupload":
                return self.answer(200, {"files": [*map(self.mode, json.loads(body)["files"])]})
            assert action == "commit", path
            hub.commit(repo, [json.loads(line) for line in body.splitlines()])
            commit = {"commitUrl": f"{hub.url}/{repo}/commit/0", "commitOid": "0" * 40}
            return self.answer(200, {**commit, "success": True, "hookOutput": ""})

        def do_PUT(self):
            hub.large[self.path.rpartition("/")[2]] = self.body()
            self.answer(200)

        def mode(self, file):
            mode = "lfs" if file["path"].endswith(".safetensors") else "regular"
            return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}

        def large_files(self, asked):
            def upload(entry):
                return {"upload": {"href": f"{hub.url}/large/{entry['oid']}", "header": {}}}

            objects = [{**entry, "actions": upload(entry)} for entry in asked["objects"]]
            return {"transfer": "basic", "objects": objects}

    return Handler


@contextlib.contextmanager
def serve_hub():
    """Yield a hub that answers until the end of the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
