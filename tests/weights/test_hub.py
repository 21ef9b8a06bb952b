"""A folder is published as the Hub's API wants it; a server here answers as the Hub does."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import constants

from ssppo_jax.__main__ import main


class Hub(BaseHTTPRequestHandler):
    """The calls of an upload of small files: create, preupload, commit."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        if self.server.refuse:
            return self.answer({"error": "no"}, self.server.refuse)
        host = f"http://127.0.0.1:{self.server.server_port}"
        if self.path == "/api/repos/create":
            self.server.repo = json.loads(body)
            return self.answer({"url": f"{host}/me/model", "id": "me/model"})
        if self.path.endswith("/preupload/main"):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        for line in body.splitlines():
            record = json.loads(line)
            if record["key"] == "file":
                content = base64.b64decode(record["value"]["content"])
                self.server.files[record["value"]["path"]] = content
        oid = "a" * 40
        return self.answer({"commitUrl": f"{host}/me/model/commit/{oid}", "commitOid": oid})

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        self.answer({"id": "me/model", "sha": "b" * 40, "siblings": []})

    def answer(self, value, status=200):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.files, server.repo, server.refuse = [], {}, None, 0
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def folder(tmp_path):
    policy = tmp_path / "run/policy"
    policy.mkdir(parents=True)
    (policy / "config.json").write_text('{"model_type": "llama"}')
    (policy / "model.safetensors").write_bytes(bytes(range(256)))
    (policy / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    return policy


def test_every_file_arrives_in_a_private_repository(hub, folder, capsys):
    assert main(["push", f"--folder={folder}", "--repo=me/model"]) == 0
    assert hub.files == {file.name: file.read_bytes() for file in folder.iterdir()}
    assert hub.repo["name"] == "model" and hub.repo["organization"] == "me"
    assert hub.repo.get("private") is True or hub.repo.get("visibility") == "private"
    assert {token for _, token in hub.asked} == {"Bearer hf_test"}
    assert capsys.readouterr().out.strip().endswith("/me/model")


@pytest.mark.parametrize(
    ("status", "told"), [(401, "run hf auth login"), (403, "may not write there")]
)
def test_a_refusal_says_what_to_do(hub, folder, capsys, status, told):
    hub.refuse = status
    assert main(["push", f"--folder={folder}", "--repo=me/model"]) == 1
    assert told in capsys.readouterr().err


def test_what_cannot_be_published_is_refused_before_anything_is_sent(hub, folder, capsys):
    (folder.parent / "config.json").write_text("{}")  # a run's own, not a model's
    (folder.parent / "metrics.jsonl").write_text("")
    for argv, told in (
        ([f"--folder={folder.parent}", "--repo=me/model"], f"holds no model; give {folder}"),
        ([f"--folder={folder / 'none'}", "--repo=me/model"], "give a run's policy or adapters"),
        ([f"--folder={folder}", "--repo=model"], "--repo=model: write it as owner/name"),
        ([f"--folder={folder}", "--repo=me/my--model"], "--repo=me/my--model: "),
    ):
        assert main(["push", *argv]) == 78
        assert told in capsys.readouterr().err
    assert hub.asked == []


def test_a_hub_that_cannot_be_reached_is_said(hub, folder, capsys, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    assert main(["push", f"--folder={folder}", "--repo=me/model"]) == 1
    assert "the Hugging Face Hub cannot be reached" in capsys.readouterr().err
