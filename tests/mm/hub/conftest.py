"""A hub on loopback: what `huggingface_hub` asks of one when it pushes and pulls, over HTTP, in memory.

The paths are matched as they come; a repository is a list of commits, each a dict of files. Tensors go through the
endpoint of large files, as on the hub.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

Files = dict[str, bytes]
TOKEN = "hf_loopback"
NOWHERE = {"branches": [], "converts": [], "tags": []}


class Hub(ThreadingHTTPServer):
    """The repositories: `commits` by name and sha, `newest` sha by name, `tags` by name and tag; `uploads` by sha256.

    `cut` files end after half of their bytes, once each.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.commits: dict[str, dict[str, Files]] = {}
        self.newest: dict[str, str] = {}
        self.tags: dict[str, dict[str, str]] = {}
        self.uploads: Files = {}
        self.cut: set[str] = set()
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, repository: str) -> Files:
        """The newest version, to look at and to tamper with."""
        return self.commits[repository][self.newest[repository]]

    def put(self, repository: str, files: Files) -> str:
        """Make a version of these files."""
        commits = self.commits.setdefault(repository, {})
        sha = hashlib.sha1(f"{repository} {len(commits)}".encode()).hexdigest()
        commits[sha] = files
        self.newest[repository] = sha
        return sha

    def sha_of(self, repository: str, revision: str) -> str | None:
        if revision == "main":
            return self.newest.get(repository)
        sha = self.tags.get(repository, {}).get(revision, revision)
        return sha if sha in self.commits.get(repository, {}) else None


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        if found := re.fullmatch(
            r"/api/models/(\w+/[\w.-]+)/(revision|tree)/(.+)|/api/models/(\w+/[\w.-]+)/refs", path
        ):
            repository, kind, revision, with_refs = found.groups()
            tags = self.server.tags.get(with_refs, {})
            listed = [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": sha} for name, sha in tags.items()]
            return self.answer(NOWHERE | {"tags": listed}) if with_refs else self.tell(repository, kind, revision)
        if found := re.fullmatch(r"/api/models/(\w+/[\w.-]+)", path):
            return self.tell(found[1], "revision", "main")
        if found := re.fullmatch(r"/(\w+/[\w.-]+)/resolve/(\w[^/]*)/(.+)", path):
            return self.send_file(*found.groups())
        return self.answer({})

    do_HEAD = do_GET

    def tell(self, repository: str, kind: str, revision: str) -> None:
        sha = self.known(repository, revision)
        if sha is None:
            return
        files = self.server.commits[repository][sha]
        tree = [{"type": "file", "path": n, "size": len(c), "oid": etag(c)} for n, c in files.items()]
        siblings = [{"rfilename": name} for name in files]
        about = {"id": repository, "sha": sha, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
        self.answer(tree if kind == "tree" else about)

    def known(self, repository: str, revision: str) -> str | None:
        if repository not in self.server.newest:
            return self.answer({}, 404, {"X-Error-Code": "RepoNotFound"})
        sha = self.server.sha_of(repository, revision)
        return sha or self.answer({}, 404, {"X-Error-Code": "RevisionNotFound"})

    def send_file(self, repository: str, revision: str, name: str) -> None:
        sha = self.known(repository, revision)
        if sha is None:
            return
        content = self.server.commits[repository][sha].get(name)
        if content is None:
            return self.answer({}, 404, {"X-Error-Code": "EntryNotFound"})
        start = int(re.sub(r"\D", "", self.headers.get("Range", "0").partition("-")[0]) or 0)
        self.send_response(206 if start else 200)
        sent = content[start:]
        for key, value in (("ETag", f'"{etag(content)}"'), ("X-Repo-Commit", sha), ("Content-Length", str(len(sent)))):
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if name in self.server.cut:
            self.server.cut.remove(name)
            sent = sent[: len(sent) // 2]
            self.close_connection = True
        self.wfile.write(sent)

    def do_POST(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            repository = f"{asked['organization']}/{asked['name']}"
            exists = repository in self.server.newest
            if not exists:
                self.server.put(repository, {".gitattributes": b""})
            return self.answer({"url": f"{self.server.url}/{repository}"}, 409 if exists else 200)
        found = re.fullmatch(
            r"(?:/api/models)?/(\w+/[\w.-]+?)(?:\.git/info/lfs/objects)?/(preupload|commit|tag|batch).*", self.path
        )
        assert found
        getattr(self, found[2])(found[1], body)

    def preupload(self, repository: str, body: bytes) -> None:
        files = []
        for file in json.loads(body)["files"]:
            mode = "lfs" if file["path"].endswith(".safetensors") else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None})
        self.answer({"files": files})

    def batch(self, repository: str, body: bytes) -> None:
        objects = []
        for file in json.loads(body)["objects"]:
            href = {"href": f"{self.server.url}/upload/{file['oid']}"}
            objects.append({"oid": file["oid"], "size": file["size"], "actions": {"upload": href}})
        self.answer({"transfer": "basic", "objects": objects})

    def do_PUT(self) -> None:
        self.server.uploads[self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({})

    def commit(self, repository: str, body: bytes) -> None:
        files = dict(self.server.files(repository))
        for line in body.splitlines():
            said = json.loads(line)
            value = said["value"]
            if said["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if said["key"] == "lfsFile":
                files[value["path"]] = self.server.uploads[value["oid"]]
            if said["key"] == "deletedFile":
                del files[value["path"]]
        sha = self.server.put(repository, files)
        self.answer({"commitUrl": f"{self.server.url}/{repository}/commit/{sha}", "commitOid": sha})

    def tag(self, repository: str, body: bytes) -> None:
        sha = self.path.rpartition("/")[2]
        self.server.tags.setdefault(repository, {})[json.loads(body)["tag"]] = sha
        self.answer({})

    def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        sent = json.dumps(content).encode()
        self.send_response(status)
        for key, value in {
            "Content-Length": str(len(sent)),
            "Content-Type": "application/json",
            **(headers or {}),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(sent)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture(scope="session")
def server() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield hub
    hub.shutdown()
    hub.server_close()
    thread.join()


@pytest.fixture
def hub(server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """The hub as the one that this process knows, with a token and an empty cache."""
    constants = pytest.importorskip("huggingface_hub.constants")
    changes = {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": False,
    }
    for name, value in changes.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return server


@pytest.fixture
def write_bert() -> Callable[[Path], None]:
    """write_bert(folder) writes a text encoder of transformers that knows nine words."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")

    def write(folder: Path) -> None:
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "on", "mat"]
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        config = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=20, **sizes)
        transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
        transformers.BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)

    return write
