#!/usr/bin/env bash
# litserve 0.2.19: a body that is no JSON is answered 500 "Internal server error", not 400 or 422.
#
# Expected: what a client got wrong is a 4xx, as FastAPI beneath answers a body that it parses itself; 5xx is the server's
# fault, which load balancers and clients retry and monitors wake people for.
# Seen: the endpoint awaits request.json() within its own `except Exception`, which makes every parsing error a 500 and logs
# a traceback for each. Anybody can fill the log and trip an alarm on the rate of 5xx with empty bodies.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/python" -m pip install --quiet --disable-pip-version-check litserve==0.2.19 fastapi==0.165.0 \
    httpx==0.28.1 numpy==2.4.6
cat > "$here/case.py" <<'PY'
import logging
from importlib.metadata import version

from fastapi.testclient import TestClient
from litserve import LitAPI, LitServer
from litserve.utils import wrap_litserve_start


class Twice(LitAPI):
    def setup(self, device):
        pass

    def predict(self, x):
        return 2 * x["number"]


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    print("litserve", version("litserve"))
    server = LitServer(Twice(), accelerator="cpu", devices=1)
    with wrap_litserve_start(server) as started, TestClient(started.app) as client:
        seen = {}
        for body in (b'{"number": 4}', b"{", b"", b"\xff"):
            answer = client.post("/predict", content=body, headers={"Content-Type": "application/json"})
            seen[body] = answer.status_code
            print(f"{body!r}: {answer.status_code} {answer.text}")
    assert list(seen.values()) == [200, 500, 500, 500]
PY
"$here/venv/bin/python" "$here/case.py"
