#!/usr/bin/env bash
# huggingface_hub 2.4.0: a snapshot that was fetched by patterns cannot be opened offline without repeating the patterns.
#
# Expected: `snapshot_download(repo, allow_patterns=[...])` and later, offline, `snapshot_download(repo)` gives the folder
# with what was fetched: that is all there is, and everything that the program asked for is in it.
# Seen: with the patterns it gives the folder; without them it raises IncompleteSnapshotError and names the files that were
# never wanted, `.gitattributes` first, since the list of the repository's files was kept from the first call. A job that
# warms the cache with patterns and a worker that opens it without (another library, an older script) works online, by
# fetching the rest in silence, and fails on the machine without a network. Both must name the same patterns, or the worker
# must be given the folder.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/python" -m pip install --quiet --disable-pip-version-check huggingface_hub==2.4.0
cat > "$here/case.py" <<'PY'
import hashlib
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FILES = {"config.json": b"{}", "notes.txt": b"words", ".gitattributes": b"* text"}
COMMIT = "a" * 40


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as a snapshot asks for."""

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        if "/tree/" in self.path:
            found = [{"type": "file", "path": each, "size": len(text), "oid": COMMIT} for each, text in FILES.items()]
            body = json.dumps(found).encode()
        elif self.path.startswith("/api/models/"):
            siblings = [{"rfilename": each} for each in FILES]
            body = json.dumps({"id": "some/thing", "sha": COMMIT, "siblings": siblings}).encode()
        else:
            body = FILES.get(name, b"")
        self.send_response(200 if body else 404)
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_DISABLE_XET": "1"}
os.environ |= {"HF_HOME": sys.argv[1], "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
import huggingface_hub
from huggingface_hub import snapshot_download

print("huggingface_hub", huggingface_hub.__version__)
wanted = {"allow_patterns": ["*.json", "*.txt"]}
snapshot_download("some/thing", **wanted)
folder = snapshot_download("some/thing", local_files_only=True, **wanted)
print("offline, with the patterns:", sorted(os.listdir(folder)))
assert sorted(os.listdir(folder)) == ["config.json", "notes.txt"]
try:
    snapshot_download("some/thing", local_files_only=True)
except Exception as error:
    print("offline, without them:", type(error).__name__, str(error)[:150])
    assert type(error).__name__ == "IncompleteSnapshotError" and ".gitattributes" in str(error)
else:
    raise SystemExit("it opens now")
PY
"$here/venv/bin/python" "$here/case.py" "$here/home"
