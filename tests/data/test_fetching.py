"""Downloads, from a server on this machine that behaves well or badly."""

from __future__ import annotations

import errno
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from raw_files import pixels, write_mnist

from convatlas.core.errors import UserError
from convatlas.data.fetching import OfficialFile, check, fetch

CONTENT = pixels(300_000).tobytes()
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `files`; `asked` is what came: path and range."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {"/set.bin": CONTENT}
        self.asked: list[tuple[str, str | None]] = []
        self.cut_after: int | None = None
        self.knows_ranges = True

    def url(self, name: str = "set.bin") -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        content = self.server.files.get(self.path)
        begin = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.knows_ranges else 0
        if content is None or begin >= len(content):
            self.send_error(404 if content is None else 416)
            return
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        self.wfile.write(content[begin : self.server.cut_after])

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the servers named here, whatever proxy the machine is behind."""
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def official(*urls: str, name: str = "set.bin", md5: str = MD5) -> OfficialFile:
    return OfficialFile(name, md5, urls)


def test_a_missing_file_is_downloaded_and_one_that_is_there_is_left(server: Server, tmp_path: Path) -> None:
    root = tmp_path / "raw" / "set"
    fetch(root, [official(server.url())], "Set")
    assert {path.name: path.read_bytes() for path in root.iterdir()} == {"set.bin": CONTENT}
    (root / "set.bin").write_bytes(b"mine")
    fetch(root, [official(server.url())], "Set")
    assert (root / "set.bin").read_bytes() == b"mine"
    assert server.asked == [("/set.bin", None)]


@pytest.mark.parametrize(
    ("there", "knows_ranges", "asked"),
    [
        (CONTENT[:100_000], True, ["bytes=100000-"]),
        (CONTENT[:100_000], False, ["bytes=100000-"]),
        (CONTENT, True, []),
        (CONTENT + b"more", True, ["bytes=300004-", None]),
    ],
    ids=["resumed", "server without ranges", "killed before renaming", "longer than the file"],
)
def test_what_is_there_already_is_used(
    server: Server, tmp_path: Path, there: bytes, knows_ranges: bool, asked: list[str | None]
) -> None:
    server.knows_ranges = knows_ranges
    (tmp_path / "set.bin.part").write_bytes(there)
    fetch(tmp_path, [official(server.url())], "Set")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"set.bin": CONTENT}
    assert [wanted for _, wanted in server.asked] == asked


def test_a_cut_connection_keeps_what_came(server: Server, tmp_path: Path) -> None:
    server.cut_after = 120_000
    with pytest.raises(UserError, match=r"set\.bin: the connection ended after 120000 of 300000 bytes"):
        fetch(tmp_path, [official(server.url())], "Set")
    assert [path.name for path in tmp_path.iterdir()] == ["set.bin.part"]
    server.cut_after = None
    fetch(tmp_path, [official(server.url())], "Set")
    assert server.asked[-1] == ("/set.bin", "bytes=120000-")
    assert (tmp_path / "set.bin").read_bytes() == CONTENT


def test_the_next_mirror_is_tried(server: Server, tmp_path: Path) -> None:
    server.files["/damaged.bin"] = CONTENT[:-1] + b"?"
    fetch(tmp_path, [official(server.url("gone.bin"), server.url("damaged.bin"), server.url())], "Set")
    assert (tmp_path / "set.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("{server}gone.bin", "gone.bin: Not Found"),
        ("{server}damaged.bin", f"damaged.bin: what came has another checksum than {MD5}"),
        ("http://127.0.0.1:9/set.bin", "http://127.0.0.1:9/set.bin: .*refused"),
        ("https://no-such-host.invalid/set.bin", "no-such-host.invalid/set.bin: "),
    ],
    ids=["404", "wrong checksum", "nobody listens", "offline"],
)
def test_what_cannot_be_had_is_one_sentence_and_leaves_nothing(
    server: Server, tmp_path: Path, url: str, reason: str
) -> None:
    server.files["/damaged.bin"] = CONTENT[:-1] + b"?"
    root = tmp_path / "set"
    with pytest.raises(UserError, match=rf"Set: set\.bin is not in .* cannot be downloaded \(.*{reason}.*\)\. Put it "):
        fetch(root, [official(url.format(server=server.url("")))], "Set")
    assert not root.exists()


def test_a_full_disk_is_named(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, file: BinaryIO) -> None:
            self.file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def tell(self) -> int:
            return self.file.tell()

        def write(self, _: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    opened = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda path, mode="r", *rest, **named: (
            Full(opened(path, mode))
            if path.name.endswith(".part") and mode != "rb"
            else opened(path, mode, *rest, **named)
        ),
    )
    with pytest.raises(UserError, match=r"Set: .* cannot be written: No space left on device\. Make room"):
        fetch(tmp_path, [official(server.url())], "Set")
    assert not (tmp_path / "set.bin").exists()


def test_a_download_that_is_not_allowed_is_not_begun(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Set: set\.bin not found in .* data\.source\.download=true"):
        fetch(tmp_path / "set", [official(server.url())], "Set", allowed=False)
    assert (server.asked, (tmp_path / "set").exists()) == ([], False)


def test_checksums_tell_two_files_apart(tmp_path: Path) -> None:
    path = tmp_path / "set.bin"
    path.write_bytes(CONTENT)
    check(path, official())
    path.write_bytes(CONTENT[1:])
    with pytest.raises(UserError, match=rf"set\.bin is not the official file: its md5 is \w+, not {MD5}"):
        check(path, official())


def test_a_source_downloads_what_its_folder_lacks(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MNIST with one file by hand: the other three come, are verified, and the data are whole."""
    from torchvision.datasets import MNIST

    from convatlas.data.sources import mnist

    files = {path.name: path.read_bytes() for path in write_mnist(tmp_path / "made").iterdir()}
    server.files |= {f"/{name}": content for name, content in files.items()}
    resources = [(name, hashlib.md5(files[name]).hexdigest()) for name, _ in MNIST.resources]
    monkeypatch.setattr(MNIST, "resources", resources)
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/", server.url("")])
    root = tmp_path / "raw"
    root.mkdir()
    (root / "train-images-idx3-ubyte.gz").write_bytes(files["train-images-idx3-ubyte.gz"])
    raw = mnist.load_mnist(root)
    np.testing.assert_array_equal(raw.images[:40, 0], pixels(40, 28, 28, seed=0))
    assert sorted(path.name for path in root.iterdir()) == sorted(files)
    assert "/train-images-idx3-ubyte.gz" not in {path for path, _ in server.asked}


def test_two_that_fetch_at_once_do_not_write_the_same_file(server: Server, tmp_path: Path) -> None:
    """The second waits for the first, and then finds the file."""
    threads = [threading.Thread(target=fetch, args=(tmp_path, [official(server.url())], "Set")) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"set.bin": CONTENT}
    assert server.asked == [("/set.bin", None)]
