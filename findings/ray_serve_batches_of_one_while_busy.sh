#!/usr/bin/env bash
# ray 2.60.0: while a batch runs, @serve.batch does not gather what arrives; each request becomes a batch of its own.
#
# Expected: with max_concurrent_batches=1, the default, what arrives while a batch runs waits for it in any case, and so
# leaves together, up to max_batch_size, when it is done: as in Triton's or mosec's batchers.
# Seen: the queue takes a request, waits batch_wait_timeout_s from that one on and closes the batch, whether or not it can
# run; closed batches queue up at a semaphore. Requests that come further apart than the timeout (10 ms by default) are
# computed one by one, however many wait: the busier the replica, the more its batching is needed, and the less there is.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/python" -m pip install --quiet --disable-pip-version-check 'ray[serve]==2.60.0'
cat > "$here/case.py" <<'PY'
import asyncio
import logging
import time
from importlib.metadata import version

import ray
from ray import serve


@serve.deployment(max_ongoing_requests=100)
class Batches:
    def __init__(self):
        self.sizes = []

    @serve.batch(max_batch_size=8)
    async def compute(self, items):
        self.sizes.append(len(items))
        await asyncio.sleep(0.5)
        return items

    async def __call__(self, wait):
        await asyncio.sleep(wait)
        return await self.compute(wait)

    async def seen(self):
        return self.sizes


if __name__ == "__main__":
    print("ray", version("ray"))
    ray.init(include_dashboard=False, num_cpus=2, logging_level=logging.ERROR)
    handle = serve.run(Batches.bind(), route_prefix=None)
    started = time.time()
    # One request, and while its batch runs for 0.5 s eight more, 40 ms apart.
    for answer in [handle.remote(0.04 * number) for number in range(9)]:
        answer.result()
    sizes = handle.seen.remote().result()
    print(f"sizes of batches: {sizes}, {time.time() - started:.1f} s; expected: [1, 8], 1 s")
    serve.shutdown()
    ray.shutdown()
    assert sizes == [1] * 9, sizes
PY
"$here/venv/bin/python" "$here/case.py"
