"""Official files: downloaded where their makers allow it, and known by their checksums.

A download goes to `<name>.part` beside its place and is renamed when its checksum is right; one that was interrupted
goes on where it stopped. Nothing else ever writes to `data.root`.
"""

from __future__ import annotations

import hashlib
import http.client
import ssl
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError

from filelock import FileLock
from tqdm import tqdm

from convatlas.core.errors import UserError
from convatlas.data.archives import GET_AGAIN, printable, reading

__all__ = ["OfficialFile", "check", "fetch", "require_root"]

TIMEOUT = 30.0
"""Seconds without a byte after which a server counts as silent."""
CHUNK = 1 << 20
RANGE_NOT_SATISFIABLE = 416


@dataclass(frozen=True)
class OfficialFile:
    """A file as its makers publish it.

    Attributes:
        name: of the file in `data.root`.
        md5: the checksum its makers or torchvision give. It tells damage and mistakes, not a forger's work.
        urls: where it can be had, the best first; none where the licence or a login stands before it.
    """

    name: str
    md5: str
    urls: tuple[str, ...] = ()


def require_root(root: Path) -> None:
    """Refuse a `data.root` that is a file, such as the archive itself.

    Raises:
        UserError: it is one.
    """
    if root.is_file():
        raise UserError(f"data.root={root} is a file; set data.root={root.parent}, the folder that holds it.")


def check(path: Path, official: OfficialFile) -> None:
    """Compare a file with the official checksum.

    Raises:
        UserError: they differ, or the file cannot be read.
    """
    found = _md5(path)
    if found != official.md5:
        raise UserError(
            f"{printable(path)} is not the official file: its md5 is {found}, not {official.md5}. {GET_AGAIN[:-1]}, or "
            "set data.source.verify=false if it is meant to differ."
        )


def fetch(root: Path, files: Sequence[OfficialFile], title: str, *, allowed: bool = True) -> None:
    """Download those of the files that are not in `root`.

    Args:
        root: `data.root`; made if it is not there.
        files: what is needed.
        title: of the data set, for messages.
        allowed: `data.source.download`.

    Raises:
        UserError: a file is missing and cannot be downloaded, or `root` cannot be written. What was complete stays.
    """
    missing = [file for file in files if not (root / file.name).exists()]
    if not missing:
        return
    if not allowed:
        names = ", ".join(file.name for file in missing)
        raise UserError(
            f"{title}: {names} not found in {root}; put the files there, set data.root, or allow the download with "
            "data.source.download=true."
        )
    new_root = not root.exists()
    lock = root / ".fetch.lock"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            for file in missing:
                if not (root / file.name).exists():  # another process may have been faster
                    _fetch_one(root, file, title)
    except OSError as error:
        raise UserError(
            f"{title}: {root} cannot be written: {error.strerror or error}. Make room or set data.root, then start the "
            "same command again; the download goes on where it stopped."
        ) from error
    finally:
        with suppress(OSError):
            lock.unlink()
            if new_root:
                root.rmdir()  # fails where something came


def _fetch_one(root: Path, file: OfficialFile, title: str) -> None:
    part = root / f"{file.name}.part"
    failures = []
    for url in file.urls:
        try:
            if not (part.exists() and _md5(part) == file.md5):
                _download(url, part, file.name)
        except (URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            reason = error.reason if isinstance(error, URLError) else error
            failures.append(f"{url}: {reason}")
            continue
        if _md5(part) == file.md5:
            part.rename(root / file.name)
            return
        part.unlink()
        failures.append(f"{url}: what came has another checksum than {file.md5}")
    raise UserError(
        f"{title}: {file.name} is not in {root} and cannot be downloaded ({'; '.join(failures)}). "
        f"Put it there by hand, or set data.root to the folder that holds it."
    )


def _download(url: str, part: Path, name: str) -> None:
    """Bring `part` to the end of what the server has, going on with what is there if the server can.

    Raises:
        URLError, HTTPException, ConnectionError, TimeoutError: the server fails.
        OSError: `part` cannot be written.
    """
    begun = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "convatlas", "Accept-Encoding": "identity"}
    if begun:
        headers["Range"] = f"bytes={begun}-"
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)  # noqa: S310 - constants of this package, http and https
    except HTTPError as error:
        if begun and error.code == RANGE_NOT_SATISFIABLE:  # more is there than the server has
            part.unlink()
            _download(url, part, name)
            return
        raise
    with answer:
        resumed = answer.status == http.client.PARTIAL_CONTENT
        size = answer.headers.get("Content-Length")
        expected = None if size is None else int(size) + (begun if resumed else 0)
        with (
            part.open("ab" if resumed else "wb") as out,
            tqdm(total=expected, initial=out.tell(), desc=name, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while chunk := answer.read(CHUNK):
                out.write(chunk)
                bar.update(len(chunk))
            written = out.tell()
    if expected is not None and written < expected:
        raise ConnectionError(f"the connection ended after {written} of {expected} bytes")


def _md5(path: Path) -> str:
    with reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
