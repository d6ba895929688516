"""The text of a file: its bytes hashed as they are read, decompressed and decoded."""

from __future__ import annotations

import bz2
import codecs
import gzip
import hashlib
import io
import lzma
import os
import stat
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from streamrnn.errors import DataError, TrainingError
from streamrnn.model.checks import shown

__all__ = ["STDIN", "Source", "TextStream", "check_encoding", "open_source"]

STDIN = "-"
CHUNK_BYTES = 1 << 20
_COMPRESSIONS = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ\x00", lzma.open),
)
_MARKS = ((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_DAMAGED = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error)


class _Readable(io.RawIOBase):
    def readable(self) -> bool:
        return True


class _Hashed(_Readable):
    """A file whose bytes are hashed as they are read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.sha256 = file, hashlib.sha256()

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = self._file.read(len(buffer))
        self.sha256.update(data)
        buffer[: len(data)] = data
        return len(data)


class Source:
    """An open file that is read once, from its beginning to its end."""

    def __init__(self, path: str, file: BinaryIO) -> None:
        self.path = path
        self._raw = _Hashed(file)
        self._buffered = io.BufferedReader(self._raw, CHUNK_BYTES)

    def first_bytes(self) -> bytes:
        """Return the first bytes, which are read again later."""
        return self._buffered.peek(16)[:16]

    def read(self) -> bytes:
        """Return all bytes, as they are."""
        return self._buffered.read()

    def plain(self) -> BinaryIO:
        """Return a file of the bytes, decompressed if they are gzip, bzip2 or xz."""
        first = self.first_bytes()
        for magic, opened in _COMPRESSIONS:
            if first.startswith(magic):
                # Buffered: these hand out few bytes at a time.
                file = cast(io.RawIOBase, opened(self._buffered))
                return cast(BinaryIO, io.BufferedReader(file, CHUNK_BYTES))
        return cast(BinaryIO, self._buffered)

    def sha256(self) -> str:
        """Return the hex digest of the file's bytes; reads what is left of them."""
        while self._buffered.read(CHUNK_BYTES):
            pass
        return self._raw.sha256.hexdigest()


@contextmanager
def open_source(path: str | os.PathLike[str]) -> Iterator[Source]:
    """Open a regular file or a pipe, ``-`` being standard input.

    Raises `DataError` if it cannot be opened or read, here and within the block.
    """
    name = os.fspath(path)
    try:
        with _opened(name) as source:
            yield source
    except _DAMAGED as error:
        raise DataError(f"{name} is damaged: it cannot be decompressed ({error})") from error
    except OSError as error:
        raise DataError(f"{name} cannot be opened: {error.strerror or error}") from error


@contextmanager
def _opened(name: str) -> Iterator[Source]:
    if name == STDIN:
        yield Source("standard input", sys.stdin.buffer)
        return
    try:
        mode = os.stat(name).st_mode
    except ValueError as error:  # a NUL, or a surrogate
        raise DataError(f"{shown(name)} is no path of a file: {error}") from error
    # A device may have no end.
    if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):
        raise DataError(f"{name} is no regular file")
    with open(name, "rb") as file:
        yield Source(name, file)


def check_encoding(encoding: str) -> None:
    """Raise `TrainingError` if an encoding of text is not known."""
    try:
        "".encode(encoding)
    except (LookupError, ValueError):  # codecs that are no text's count as unknown here
        raise TrainingError(
            f"encoding is {shown(encoding)}, which is not known; usual ones are utf-8, latin-1, "
            "cp1252 and utf-16"
        ) from None


class TextStream(_Readable):
    """The text of a source as UTF-8 bytes, without a byte order mark.

    ``encoding`` empty is UTF-8, or what a byte order mark says. Reading raises `DataError` where
    the bytes are no text of that encoding, with the line.
    """

    def __init__(self, source: Source, encoding: str) -> None:
        self._file, self._path = source.plain(), source.path
        self._pending = first = self._file.read(CHUNK_BYTES)
        marked = next((name for mark, name in _MARKS if first.startswith(mark)), "utf-8-sig")
        self._encoding = encoding or marked
        if codecs.lookup(self._encoding).name == "utf-8":
            self._encoding = "utf-8-sig"
        self._decoder = codecs.getincrementaldecoder(self._encoding)()
        self._text = bytearray()
        self._num_breaks = 0
        self._last = b""
        self._at_end = False

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill a buffer, as `io.RawIOBase` says."""
        while not self._text and not self._at_end:
            self._decode_more()
        size = min(len(buffer), len(self._text))
        buffer[:size] = self._text[:size]
        del self._text[:size]
        return size

    @property
    def num_lines(self) -> int:
        """Lines that were read so far."""
        return self._num_breaks + (self._last not in (b"", b"\n"))

    def put_back(self, text: bytes) -> None:
        """Let what was read be read again."""
        self._text[:0] = text

    def _decode_more(self) -> None:
        data = self._pending or self._file.read(CHUNK_BYTES)
        self._pending, self._at_end = b"", not data
        try:
            text = self._decoder.decode(data, final=not data).encode()
        except UnicodeDecodeError as error:
            line = self._num_breaks + bytes(error.object[: error.start]).count(b"\n") + 1
            raise DataError(
                f"{self._path}, line {line}: the bytes are no {error.encoding}"
                + " (UTF-8)" * (error.encoding == "utf-8")
                + "; say how the file is encoded, such as --encoding latin-1 or cp1252"
            ) from error
        except UnicodeError as error:  # a surrogate, which some encodings can say; punycode
            raise DataError(f"{self._path} holds text that is no Unicode: {error}") from error
        self._num_breaks += text.count(b"\n")
        self._last = text[-1:] or self._last
        self._text += text
