#!/usr/bin/env bash
# litserve 0.2.19: fast_queue=True, "Enable ZeroMQ for high-throughput scenarios", changes nothing.
#
# Expected: with fast_queue=True answers go from workers to servers over ZeroMQ, as documented and as the attribute
# use_zmq says.
# Seen: LitServer passes TransportConfig(transport_config="zmq"), but the field is called transport_type; pydantic leaves
# out the unknown argument, and the default, a queue of multiprocessing's manager, is used with either setting. Whoever
# measured "with the fast queue" measured the slow one twice.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/python" -m pip install --quiet --disable-pip-version-check litserve==0.2.19 fastapi==0.165.0 numpy==2.4.6
cat > "$here/case.py" <<'PY'
from importlib.metadata import version

from litserve import LitAPI, LitServer
from litserve.utils import wrap_litserve_start


class Twice(LitAPI):
    def setup(self, device):
        pass

    def predict(self, x):
        return 2 * x["number"]


if __name__ == "__main__":
    print("litserve", version("litserve"))
    for fast in (False, True):
        server = LitServer(Twice(), accelerator="cpu", devices=1, fast_queue=fast)
        with wrap_litserve_start(server):
            used = type(server._transport).__name__
        print(f"fast_queue={fast}: use_zmq={server.use_zmq}, {server.transport_config.transport_type!r}, {used}")
        assert (server.use_zmq, server.transport_config.transport_type, used) == (fast, "mp", "MPQueueTransport")
PY
"$here/venv/bin/python" "$here/case.py"
