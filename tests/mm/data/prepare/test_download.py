"""Behaviour: a broken download goes on from its last byte, a changed file is not mixed in, archives stay in place."""

import http.server
import threading
import zipfile

import pytest

from mm.data.prepare import download
from mm.data.prepare.download import archives, download_coco, fetch, unpack

CONTENT = bytes(range(256)) * 4000


class Server(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT with ranges; a `broken` answer stops in the middle."""

    content, tag, broken, chunk, asked = CONTENT, '"one"', 0, 300_000, []

    def do_GET(self):
        cls = type(self)
        cls.asked.append(self.headers["Range"])
        if self.path == "/missing.zip":
            return self.send_error(404)
        start = int(self.headers["Range"][6:-1]) if self.headers["Range"] else 0
        if self.headers["If-Range"] not in (None, cls.tag):
            start = 0
        if start >= len(cls.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(cls.content)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(cls.content) - start))
        self.send_header("ETag", cls.tag)
        self.end_headers()
        cls.broken -= 1
        self.wfile.write(cls.content[start : start + cls.chunk] if cls.broken >= 0 else cls.content[start:])
        self.close_connection = True
        return None

    def log_message(self, *arguments):
        """Silent."""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    handler = type("Handler", (Server,), {"asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        handler.address = f"http://127.0.0.1:{running.server_port}"
        yield handler
        running.shutdown()


def test_a_broken_download_goes_on_from_its_last_byte(server, tmp_path):
    server.broken = 2
    seen = []
    path = fetch(f"{server.address}/a.zip", tmp_path, lambda there, total: seen.append((there, total)))
    assert path.read_bytes() == CONTENT and server.asked == [None, "bytes=300000-", "bytes=600000-"]
    assert seen[-1] == (len(CONTENT), len(CONTENT)) and [p.name for p in tmp_path.iterdir()] == ["a.zip"]
    fetch(f"{server.address}/a.zip", tmp_path)
    assert len(server.asked) == 3  # what is there is not fetched again


def test_a_later_run_goes_on_unless_the_file_has_changed(server, tmp_path):
    server.broken, server.chunk = 99, 1000
    with pytest.raises(OSError, match=r"cannot download .*a\.zip.*run again") as caught:
        fetch(f"{server.address}/a.zip", tmp_path)
    assert "\n" not in str(caught.value)
    server.content, server.tag, server.broken = CONTENT[::-1], '"two"', 0
    assert fetch(f"{server.address}/a.zip", tmp_path).read_bytes() == CONTENT[::-1]


def test_a_part_that_is_whole_is_kept_and_one_too_long_is_not(server, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(CONTENT)
    assert fetch(f"{server.address}/a.zip", tmp_path).read_bytes() == CONTENT
    (tmp_path / "b.zip.part").write_bytes(CONTENT + b"more")
    assert fetch(f"{server.address}/b.zip", tmp_path).read_bytes() == CONTENT


def test_what_is_not_there_is_not_asked_for_again(server, tmp_path):
    with pytest.raises(OSError, match=r"cannot download .*missing\.zip.*404"):
        fetch(f"{server.address}/missing.zip", tmp_path)
    assert len(server.asked) == 1


def test_addresses_follow_the_splits_and_the_mirror():
    assert archives("2017", ["val"], False, None) == [
        "http://images.cocodataset.org/zips/val2017.zip",
        "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
    ]
    assert archives("2014", ["train", "val"], True, "file:///m/") == [
        "file:///m/zips/train2014.zip",
        "file:///m/zips/val2014.zip",
        "file:///m/caption_datasets.zip",
    ]


@pytest.mark.parametrize(
    ("splits", "karpathy", "files"),
    [
        (["val2014"], False, ["instances.json", "val2014.jpg"]),
        (["train+restval", "test"], True, ["dataset_coco.json", "train2014.jpg", "val2014.jpg"]),
    ],
)
def test_what_the_splits_need_is_fetched_and_unpacked(tmp_path, capsys, splits, karpathy, files):
    mirror = tmp_path / "mirror"
    for name, member in (
        ("zips/train2014", "train2014.jpg"),
        ("zips/val2014", "val2014.jpg"),
        ("annotations/annotations_trainval2014", "instances.json"),
        ("caption_datasets", "dataset_coco.json"),
    ):
        (mirror / name).parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(mirror / f"{name}.zip", "w") as file:
            file.writestr(member, b"content")
    root = tmp_path / "coco"
    download_coco(root, "2014", splits, karpathy, mirror.as_uri())
    assert sorted(path.name for path in root.iterdir() if path.suffix != ".zip") == files
    assert capsys.readouterr().out.count(": 1 files unpacked") == len(files)


def test_unpacking_goes_on_and_checks(tmp_path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("val2017/1.jpg", b"one")
        file.writestr("val2017/2.jpg", b"two")
    assert unpack(archive, tmp_path / "out") == 2
    (tmp_path / "out" / "val2017" / "2.jpg").write_bytes(b"t")
    assert unpack(archive, tmp_path / "out") == 1
    assert (tmp_path / "out" / "val2017" / "2.jpg").read_bytes() == b"two"
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"a\.zip is broken"):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize("name", ["../evil.jpg", "/evil.jpg", "a/../../evil.jpg"])
def test_an_archive_stays_in_its_folder(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(name, b"x")
    with pytest.raises(ValueError, match="would leave"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert not (tmp_path / "evil.jpg").exists()
