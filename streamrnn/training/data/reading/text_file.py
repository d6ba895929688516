"""Texts as tables: every character or word is a row."""

from __future__ import annotations

import io

from streamrnn.errors import DataError
from streamrnn.training.data.reading.options import ReadOptions
from streamrnn.training.data.reading.source import Source, TextStream
from streamrnn.training.data.table import Column, Table
from streamrnn_client.text import cut

__all__ = ["MAX_TEXT_BYTES", "TOKEN", "read_text"]

TOKEN = "token"  # name of the column
MAX_TEXT_BYTES = 256 << 20  # as UTF-8; a token takes some 40 bytes while a network is trained


def read_text(source: Source, options: ReadOptions) -> Table:
    """Read a whole text; its only column, `TOKEN`, has all its different pieces as labels.

    Raises `DataError` if it is empty, too long, or holds what no text has.
    """
    stream = TextStream(source, options.encoding)
    data = io.BufferedReader(stream, 1 << 20).read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise DataError(
            f"{source.path} holds more than {MAX_TEXT_BYTES >> 20} MiB of text; train on a part"
        )
    if not data:
        raise DataError(f"{source.path} is empty; there is no text to learn from")
    nul = data.find(b"\0")
    if nul >= 0:
        raise DataError(
            f"{source.path}, line {data.count(bytes([10]), 0, nul) + 1}: a character NUL, which no "
            "text has; say how the file is encoded if it is one, such as --encoding utf-16-le"
        )
    labels, codes = cut(data.decode(), options.tokens)
    column = Column(TOKEN, labels=tuple(labels), indices=codes, unit=options.tokens)
    return Table(source.path, {TOKEN: column}, len(codes), source.sha256())
