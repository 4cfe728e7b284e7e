"""What a real server answers, and what it refuses: in another process, over a socket."""

import asyncio
import base64
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

import mm
from mm.bench.load import Ask, closed_loop
from mm.infer.decoding import Decoding
from mm.serve.config import ServeConfig

TITLES = ("red circle", "two blue squares", "one small green heart", "stripes <b>&", "a circle above a dot")


def png(side: int = 20, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def wav(samples: int = 4000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(np.arange(samples) / 7) / 2, 16_000, format="WAV")
    return buffer.getvalue()


def coded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def test_vectors_are_those_of_the_run_whoever_else_asks(server: Any) -> None:
    """Forty requests at once, of one and of several inputs, of every modality: each gets its own."""
    model = mm.load(str(server.folder / "run"), device="cpu")
    texts = [f"a {colour} {shape}" for colour in ("red", "blue", "green") for shape in ("circle", "star", "dot")]
    expected = model.encode_text(texts).numpy()
    images = [png(seed=seed) for seed in range(5)]
    seen = model.encode_image([np.asarray(Image.open(io.BytesIO(image))) for image in images]).numpy()
    asked: list[tuple[dict[str, Any], np.ndarray]] = [({"text": t}, expected[i : i + 1]) for i, t in enumerate(texts)]
    asked += [({"image": coded(image)}, seen[i : i + 1]) for i, image in enumerate(images)]
    asked += [({"text": texts}, expected), ({"image": [coded(each) for each in images]}, seen)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda each: server.ask("/embed", each[0]), asked * 3))
    for (status, found, _), (_, vectors) in zip(answers, asked * 3, strict=True):
        assert status == 200 and found["model"] == model.digest
        np.testing.assert_allclose(found["vectors"], vectors, atol=1e-4)


def test_numbers_of_vectors_in_json_are_those_of_float32() -> None:
    pytest.importorskip("fastapi", reason="serving needs the extra serve")
    from mm.serve.app import vectors_json

    vectors = np.random.default_rng(0).normal(size=(3, 500)).astype(np.float32) * 10.0 ** np.arange(-9, -6)[:, None]
    vectors = vectors.astype(np.float32)
    said = json.loads(vectors_json(vectors, 'a"b'))
    assert said["model"] == 'a"b' and json.loads(vectors_json(vectors, None))["model"] is None
    np.testing.assert_array_equal(np.array(said["vectors"], np.float32), vectors)


def test_files_are_taken_as_they_are_and_vectors_given_as_numbers(server: Any) -> None:
    for kind, content in (("image/png", png()), ("audio/wav", wav()), ("text/plain", b"a red circle")):
        status, body, headers = server.ask("/embed", content, Content_Type=kind, Accept="application/octet-stream")
        assert status == 200 and headers["X-Shape"] == "1,16"
        assert np.linalg.norm(np.frombuffer(body, "<f4")) == pytest.approx(1, abs=1e-5)


def test_pairs_are_matched(server: Any) -> None:
    status, found, _ = server.ask("/match", {"image": coded(png()), "text": ["a red circle", "stripes"]})
    assert status == 200 and len(found["log_odds"]) == 2 and all(0 < each < 1 for each in found["probabilities"])
    model = mm.load(str(server.folder / "run"), device="cpu")
    pixels = np.asarray(Image.open(io.BytesIO(png())))
    np.testing.assert_allclose(found["log_odds"], model.match(pixels, ["a red circle", "stripes"]).numpy(), atol=1e-3)
    assert server.ask("/match", {"image": [coded(png())] * 2, "text": ["a", "b", "c"]})[0] == 422


def test_a_text_finds_its_image_and_an_image_itself(server: Any) -> None:
    for number, title in enumerate(TITLES):
        status, found, _ = server.ask("/search?k=3", {"text": title})
        first, *others = found["hits"]
        assert status == 200 and len(others) == 2
        assert (first["image"], first["caption"], first["url"]) == (number, title, f"/images/{number}")
        assert first["score"] == pytest.approx(1, abs=1e-4)
    assert server.ask("/search", {"like": 2})[1]["hits"][0]["image"] == 2
    shown = server.ask("/images/2")
    with Image.open(io.BytesIO(shown[1])) as image:
        assert image.size == (90, 40) and image.format == "JPEG"
    for title in TITLES:
        reranked = server.ask("/search?k=5&stage=reranked", {"text": title})[1]["hits"]
        scores = [each["score"] for each in reranked]
        assert len(scores) == 5 and scores == sorted(scores, reverse=True)


def test_a_caption_comes_word_by_word(server: Any) -> None:
    status, body, headers = server.ask("/caption", png(), Content_Type="image/png")
    lines = [json.loads(line) for line in body.splitlines()]
    assert status == 200 and headers.get_content_type() == "application/x-ndjson" and len(lines) > 1
    assert lines[-1]["caption"] == lines[-2]["text"] and len(lines[0]["text"]) < len(lines[-1]["caption"])
    model = mm.load(str(server.folder / "run"), device="cpu")
    pixels = np.asarray(Image.open(io.BytesIO(png())))
    written = model.generate(image=pixels, decoding=Decoding(4))
    assert server.ask("/caption", png(), Content_Type="image/png", Accept="application/json")[1]["caption"] == written
    assert server.ask("/caption", wav(), Content_Type="audio/wav")[0] == 200


def test_what_is_counted_can_be_scraped(server: Any) -> None:
    server.ask("/embed", {"text": "a red circle"})
    _, body, headers = server.ask("/metrics")
    lines = body.decode().splitlines()
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert any(line.startswith('mm_requests_total{path="/embed",status="200"} ') for line in lines)
    assert "mm_weight_bits 32" in lines and server.ask("/health")[1]["bits"] == 32
    counts = [int(line.split()[-1]) for line in lines if line.startswith("mm_item_seconds_bucket")]
    assert counts == sorted(counts) and counts[-1] > 0
    paths = server.ask("/openapi.json")[1]["paths"]
    assert "application/json" in paths["/embed"]["post"]["requestBody"]["content"]


REFUSED = {
    "no JSON": (400, "/embed", b"{", "application/json"),
    "no object": (400, "/embed", b"[1]", "application/json"),
    "a key twice": (400, "/embed", b'{"text": "a", "text": "b"}', "application/json"),
    "not UTF-8": (400, "/embed", b"\xff\xfe", "text/plain"),
    "nested": (400, "/embed", b"[" * 100_000, "application/json"),
    "half a surrogate": (422, "/embed", b'{"text": "\\ud800"}', "application/json"),
    "no key": (422, "/embed", b"{}", "application/json"),
    "unknown key": (422, "/embed", b'{"video": "a"}', "application/json"),
    "a number": (422, "/embed", b'{"text": 1}', "application/json"),
    "an empty list": (422, "/embed", b'{"text": []}', "application/json"),
    "many": (422, "/embed", json.dumps({"text": ["a"] * 65}).encode(), "application/json"),
    "two modalities": (422, "/embed", b'{"text": "a", "image": "aaaa"}', "application/json"),
    "blank": (422, "/embed", b"  \n", "text/plain"),
    "long": (413, "/embed", b"a" * 10_001, "text/plain"),
    "no base64": (422, "/embed", b'{"image": "?"}', "application/json"),
    "no image": (422, "/embed", b"GIF89a nonsense", "image/gif"),
    "a part of an image": (422, "/embed", png()[:200], "image/png"),
    "no sound": (422, "/embed", b"RIFF", "audio/wav"),
    "a sound without samples": (422, "/embed", wav(0), "audio/wav"),
    "a video": (415, "/embed", b"a", "video/mp4"),
    "nothing": (400, "/embed", b"", "text/plain"),
    "large": (413, "/embed", png() + bytes(2 << 20), "image/png"),
    "an image that is not there": (404, "/search", b'{"like": 99}', "application/json"),
    "a path": (422, "/search", b'{"like": "../../etc/passwd"}', "application/json"),
    "k": (422, "/search?k=0", b"a", "text/plain"),
    "k in words": (422, "/search?k=many", b"a", "text/plain"),
    "stage": (422, "/search?stage=best", b"a", "text/plain"),
    "re-ranking an image": (422, "/search?stage=reranked", png(), "image/png"),
    "a text to be described": (422, "/caption", b"a", "text/plain"),
    "no such address": (404, "/nothing", b"a", "text/plain"),
    "another method": (405, "/health", b"a", "text/plain"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_refused_in_one_line(server: Any, name: str) -> None:
    status, path, body, kind = REFUSED[name]
    found, said, _ = server.ask(path, body, Content_Type=kind)
    assert found == status, said
    assert set(said) == {"error"} and said["error"] and "\n" not in said["error"]
    assert str(server.folder) not in said["error"]


def test_a_closed_loop_of_clients_gets_every_answer_once(server: Any) -> None:
    port = int(server.address.rpartition(":")[2])
    ask = Ask("/embed", b"a red circle", "text/plain", right=lambda answer: b"vectors" in answer)
    load = asyncio.run(closed_loop(port, 8, 0.5, lambda number: ask))
    facts = load.facts()
    assert set(load.statuses) == {200} and load.wrong == 0 and facts["answered"] == len(load.latencies) >= 8
    written = Ask("/caption", png(), "image/png")
    status = asyncio.run(closed_loop(port, 2, 0.1, lambda number: written)).statuses
    assert set(status) == {200}


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims a size; of what it claims nothing follows."""
    content = bytearray(png())
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return bytes(content)


def test_what_claims_to_be_huge_is_not_decoded(server: Any) -> None:
    before = time.perf_counter()
    for width, height in ((60_000, 60_000), (9000, 9000)):
        status, said, _ = server.ask("/embed", bomb(width, height), Content_Type="image/png")
        assert status in (413, 422) and said["error"]
    assert time.perf_counter() - before < 5


def test_a_bad_item_names_itself_and_the_others_of_a_batch_are_answered(server: Any) -> None:
    good, bad = {"image": coded(png())}, {"image": [coded(png()), coded(b"no image")]}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda each: server.ask("/embed", each), [good, bad] * 4))
    assert [status for status, _, _ in answers] == [200, 422] * 4
    assert answers[1][1]["error"].startswith("image 1: ")


def test_a_thousand_malformed_requests_give_no_500(server: Any) -> None:
    """Damaged at random: bytes changed, cut off, repeated; content types mixed up."""
    chance = random.Random(0)
    seeds = [png(), wav(), b'{"text": ["a", "b"]}', json.dumps({"image": coded(png())}).encode(), b"a red circle"]
    kinds = ["image/png", "audio/wav", "application/json", "text/plain", "application/json; charset=x", "image/", ""]
    paths = ["/embed", "/match", "/search", "/caption", "/search?k=3&stage=reranked"]

    def damaged(number: int) -> int:
        body = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, 8)):
            body[chance.randrange(len(body))] = chance.randrange(256)
        body = body[: chance.randint(1, len(body))] * chance.choice((1, 1, 2))
        path, kind = chance.choice(paths), chance.choice(kinds)
        return server.ask(path, bytes(body), Content_Type=kind)[0]

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(damaged, range(1000)))
    assert len(statuses) == 1000 and max(statuses) < 500, {s: statuses.count(s) for s in set(statuses)}
    assert server.ask("/embed", {"text": "a red circle"})[0] == 200


def connected(server: Any) -> socket.socket:
    port = int(server.address.rpartition(":")[2])
    return socket.create_connection(("127.0.0.1", port), timeout=20)


HEAD = b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 50\r\n\r\n"


def test_slow_and_cut_bodies_hold_up_nobody(server: Any) -> None:
    slow, gone = connected(server), connected(server)
    slow.sendall(HEAD + b"a red")
    gone.sendall(HEAD + b"a red")
    gone.close()
    assert server.ask("/embed", {"text": "a red circle"})[0] == 200
    assert slow.recv(4096).startswith(b"HTTP/1.1 408 ")
    slow.close()
    with connected(server) as nonsense:
        nonsense.sendall(b"\x16\x03\x01\x02\x00 no HTTP\r\n\r\n")
        assert nonsense.recv(4096).startswith(b"HTTP/1.1 400 ")


def test_a_header_that_dribbles_or_never_ends_is_refused(server: Any) -> None:
    """uvicorn would wait for ever; so it would for one that begins behind an answered request of its connection."""
    whole = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for before in (b"", whole):
        with connected(server) as dribbling:
            dribbling.sendall(before + b"GET /health HTTP/1.1\r\nHost: loc")
            said = b""
            for _ in range(40):
                time.sleep(0.05)
                dribbling.sendall(b"a") if b" 408 " not in said else None
                dribbling.settimeout(0.01)
                with contextlib.suppress(TimeoutError):
                    said += dribbling.recv(4096)
                if b" 408 " in said:
                    break
            assert b"HTTP/1.1 408 " in said and b'{"error": "the header did not come within 1 seconds"}' in said
    with connected(server) as endless:
        endless.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70_000)
        assert endless.recv(4096).startswith(b"HTTP/1.1 431 ")
    with connected(server) as silent:
        assert silent.recv(4096).startswith(b"HTTP/1.1 408 ")
    with connected(server) as together:
        together.sendall(whole * 3)
        time.sleep(0.2)
        assert together.recv(65536).count(b"HTTP/1.1 200 ") == 3


def test_other_names_of_this_machine_are_not_answered(server: Any) -> None:
    assert server.ask("/health", Host="attacker.example")[0] == 421
    assert server.ask("/embed", {"text": "a"}, Host="attacker.example")[0] == 421


def test_an_index_that_is_replaced_is_searched_and_a_damaged_one_is_not(server: Any) -> None:
    file = server.folder / "index" / "index.safetensors"
    kept = file.with_name("kept")
    shutil.copy(file, kept)
    index = mm.Index.load(server.folder / "index", mm.load(str(server.folder / "run"), device="cpu"))
    other = mm.Index(index.model, index.root, index.files, index.vectors.flip(0), {})
    other.save(server.folder / "index")
    assert server.ask("/search", {"text": TITLES[0]})[1]["hits"][0]["image"] == 4
    damaged = file.with_name("damaged")
    damaged.write_bytes(b"nonsense")
    damaged.replace(file)
    assert server.ask("/search", {"text": TITLES[0]})[1]["hits"][0]["image"] == 4
    kept.replace(file)
    assert server.ask("/search", {"text": TITLES[0]})[1]["hits"][0]["image"] == 0


def test_a_fault_of_ours_is_one_line_that_tells_nothing() -> None:
    pytest.importorskip("fastapi", reason="serving needs the extra serve")
    from mm.serve.app import direct

    async def broken(request: Any) -> Any:
        raise RuntimeError("secret")

    async def send(message: Any) -> None:
        sent.append(message)

    sent: list[Any] = []
    scope = {"type": "http", "method": "POST", "path": "/embed", "headers": [], "query_string": b""}
    asyncio.run(direct(broken)(scope, None, send))
    assert sent[0]["status"] == 500 and b"/embed failed" in sent[1]["body"] and b"secret" not in sent[1]["body"]


def processes_of(server: Any) -> list[int]:
    """The server's own number, and those of what it has started."""
    first = server.process.pid
    return [first, *map(int, Path(f"/proc/{first}/task/{first}/children").read_text().split())]


def test_a_full_disk_stops_nothing(server: Any) -> None:
    """No byte can be written to a file, the log included: what is asked for is answered, and refused, as before."""
    for process in processes_of(server):
        resource.prlimit(process, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    try:
        for path in ("/embed", "/search", "/search?stage=reranked"):
            assert server.ask(path, {"text": "a red circle"})[0] == 200
        assert server.ask("/caption", png(), Content_Type="image/png")[0] == 200
        assert server.ask("/images/1")[0] == server.ask("/metrics")[0] == 200
        assert server.ask("/embed", {"image": "?"})[0] == 422
        with connected(server) as nonsense:
            nonsense.sendall(b"no HTTP\r\n\r\n")  # of which the log would speak
            assert nonsense.recv(4096).startswith(b"HTTP/1.1 400 ")
    finally:
        for process in processes_of(server):
            resource.prlimit(process, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_an_engine_that_is_killed_is_started_again_and_what_it_had_is_answered(server: Any) -> None:
    def memory(process: int) -> int:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1])

    engine = max(processes_of(server)[1:], key=memory)  # beside it runs what LitServe shares between processes
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(server.ask, "/embed", {"text": f"a red circle {number}"}) for number in range(8)]
        os.kill(engine, signal.SIGKILL)
        later = [pool.submit(server.ask, "/embed", {"text": f"a star {number}"}) for number in range(8)]
        statuses = {each.result()[0] for each in (*asked, *later)}
    assert statuses <= {200, 503}, "503: it took longer to start again than a request may wait"
    end = time.monotonic() + 120
    while server.ask("/health")[0] != 200 and time.monotonic() < end:
        time.sleep(0.2)
    assert server.ask("/embed", {"text": "a red circle"})[0] == 200
    assert engine not in processes_of(server)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "example.org", "::"])
def test_an_address_that_others_reach_needs_a_token(host: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--token"):
        ServeConfig("run", host=host)
    assert ServeConfig("run", host=host, token="secret").token == "secret"
    assert ServeConfig("run", host="127.0.0.1").token is None
