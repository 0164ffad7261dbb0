"""Raw files read where they lie: plain, gzipped, or in a tar archive. Nothing is unpacked to the disk.

Every reader ends in a `UserError` that names the file, whatever is wrong with it.
"""

from __future__ import annotations

import errno
import gzip
import io
import stat
import tarfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, cast

from convatlas.core.errors import UserError

__all__ = ["GET_AGAIN", "file_bytes", "printable", "read_file", "read_members", "read_text", "reading"]

GZIP_MAGIC = b"\x1f\x8b"
LARGEST = 4 << 30
"""Bytes that one file may have when it is unpacked: several times the largest official one."""
NO_FILE = "it is no regular file"
LARGEST_IMAGE = 1 << 30
MAX_RATIO, FREE = 32, 64 << 20
"""A gzipped file may unpack to so many times its size, and to so many bytes in any case. Images shrink to a fifth."""
GET_AGAIN = "Delete it and get the official file again."


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what damaged, missing and protected files raise into a `UserError` that names the file."""
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe or a device, which may have no end
            raise OSError(errno.EINVAL, NO_FILE, str(path))
        yield
    except (EOFError, zlib.error, tarfile.TarError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # without a number it is a format's reader's own
            raise UserError(
                f"{printable(path)} cannot be read: {error.strerror}. Correct the file or set data.root."
            ) from error
        raise UserError(f"{printable(path)} is damaged or cut off ({error}). {GET_AGAIN}") from error


def printable(path: Path | str) -> str:
    """Return a path as text for messages and cards: line breaks and bytes that are no UTF-8 are written as escapes."""
    text = str(path)
    return text if text.isprintable() else "".join(each if each.isprintable() else _escape(each) for each in text)


def _escape(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # how Python keeps a byte that is no UTF-8
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode("ascii")


def file_bytes(path: Path) -> bytes:
    """Return the bytes of an image's file.

    Raises:
        OSError: it cannot be read, is a device or a pipe, which may have no end, or is larger than any image.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, NO_FILE, str(path))
    if status.st_size > LARGEST_IMAGE:
        raise OSError(errno.EFBIG, f"it has more than {LARGEST_IMAGE:,} bytes", str(path))
    return path.read_bytes()


def read_file(path: Path) -> bytes:
    """Return the content of a file, unpacked if it is gzipped; what it is decides its content, not its name.

    Raises:
        UserError: it is missing, protected, damaged, or larger than any official file.
    """
    with reading(path), path.open("rb") as raw:
        return _Unpacked(raw, path).read(LARGEST + 1)


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, with or without a byte order mark.

    Raises:
        UserError: it is missing, protected, or in another encoding.
    """
    try:
        with reading(path):
            return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{printable(path)} is no text in UTF-8; save it in that encoding.") from error


def read_members(path: Path, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of the wanted members of a tar archive, gzipped or not, in the archive's order.

    The whole archive is refused if any member, wanted or not, is a link, a device, or lies outside the archive's own
    folder: official archives hold plain files and folders alone.

    Args:
        path: of the archive.
        wanted: members' names, with `/`, as they are in the archive.

    Raises:
        UserError: the archive is missing, protected, damaged or refused, or a wanted member is not in it.
    """
    missing = set(wanted)
    with reading(path), path.open("rb") as raw:
        file = _Unpacked(raw, path)
        with tarfile.open(fileobj=cast("IO[bytes]", file), mode="r|") as archive:
            for member in archive:
                _check_member(path, member)
                name = str(PurePosixPath(member.name))
                if name in missing and member.isfile():
                    missing.remove(name)
                    content = archive.extractfile(member) or io.BytesIO()
                    yield name, content.read()
        while file.read(1 << 20):  # to the end, so that a gzipped archive's own checksum is compared
            pass
    if missing:
        raise UserError(f"{printable(path)} has no member {sorted(missing)[0]}. {GET_AGAIN}")


class _Unpacked:
    """Reads an open file, unpacked on the way if it is gzipped, up to the bytes that an honest file may have."""

    def __init__(self, raw: IO[bytes], path: Path) -> None:
        packed = raw.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        size = raw.seek(0, io.SEEK_END)
        raw.seek(0)
        self._file = cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if packed else raw
        self._path = path
        self._limit = min(LARGEST, max(FREE, MAX_RATIO * size)) if packed else LARGEST
        self._read = 0

    def read(self, size: int) -> bytes:
        """Return the next bytes, at most `size`.

        Raises:
            UserError: there are more than the file may have.
        """
        content = self._file.read(min(size, self._limit - self._read + 1))
        self._read += len(content)
        if self._read > self._limit:
            raise UserError(
                f"{printable(self._path)} is refused: it unpacks to more than {self._limit:,} bytes, as no official "
                f"file does. {GET_AGAIN}"
            )
        return content


def _check_member(path: Path, member: tarfile.TarInfo) -> None:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        complaint = "lies outside the archive's folder"
    elif not (member.isfile() or member.isdir()):
        complaint = "is a link or a device"
    else:
        return
    raise UserError(f"{printable(path)} is refused: its member {printable(member.name)} {complaint}. {GET_AGAIN}")
