"""``streamrnn bench sequences``: tables of sequences with one class each, by one command each.

The speakers are told by the cepstra of a vowel (Kudo, Toyama and Shimbo, "Multidimensional curve
classification using passing-through regions", Pattern Recognition Letters 20, 1999), the digits
(UCI, optical recognition of handwritten digits) by the eight rows of their pictures, read from the
top to the bottom.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from streamrnn_bench.report.results import BenchError, Result
from streamrnn_bench.training.fetch import PLACE, fetch
from streamrnn_bench.training.prepare import Rows
from streamrnn_bench.training.task import Task

__all__ = ["SEQUENCES", "Question", "digits", "measure_sequences", "report_of", "vowels"]

NUM_SEEDS = 3
NUM_LAST = 360  # digits, which their file has last: 20 %
NTH = 5  # of each speaker's utterances to learn from so many-th chooses

Group = tuple[tuple[str, ...], list[list[str]]]  # what is the same in all its rows, and these


@dataclass(frozen=True)
class Question:
    """A table, what is asked of it, and the accuracy that is wanted."""

    name: str
    table: Task
    options: tuple[str, ...]  # of `streamrnn train`
    wanted: float  # in percent, of the test part

    def command(self, path: Path, seed: int) -> list[str]:
        """Return the arguments of ``streamrnn`` that train it."""
        asked = ("--group", self.table.group, "--time", self.table.time)
        target = ("--predict", self.table.predict, "--categorical", self.table.predict)
        own = (*target, *asked, "--horizon", str(self.table.horizon), *self.options)
        return ["train", str(path), *own, "--seed", str(seed)]


def _rows(header: Iterable[str], groups: Iterable[Group]) -> Rows:
    """Give groups and their rows numbers, the table's first two columns."""
    rows = [list(header)]
    for k, (shared, steps) in enumerate(groups):
        rows += [[str(k), str(t), *cells, *shared] for t, cells in enumerate(steps)]
    return rows


def digits(files: list[bytes]) -> Rows:
    """Make a table of 8 x 8 pictures: one a line, 64 grey values and the digit."""
    lines = list(csv.reader(io.StringIO(gzip.decompress(files[0]).decode())))

    def part(k: int) -> str:
        later = (len(lines) - 1 - k) // NUM_LAST
        return ("test", "validation")[later] if later < 2 else "train"

    values = [[f"{float(cell):.0f}" for cell in line] for line in lines]
    groups: list[Group] = [
        ((line[64], part(k)), [line[8 * t : 8 * t + 8] for t in range(8)])
        for k, line in enumerate(values)
    ]
    return _rows(("picture", "row", *(f"c{k}" for k in range(8)), "digit", "part"), groups)


def vowels(files: list[bytes]) -> Rows:
    """Make a table of two ``.ts`` files: of the first one learns, by the second one is judged."""
    groups: list[Group] = []
    seen: dict[str, int] = {}
    for k, data in enumerate(files):
        _, _, body = data.decode().partition("@data\n")
        for line in filter(None, body.splitlines()):
            *series, speaker = line.split(":")
            steps = [list(step) for step in zip(*(one.split(",") for one in series), strict=True)]
            seen[speaker] = seen.get(speaker, 0) + 1
            part = "test" if k else ("validation" if seen[speaker] % NTH == 0 else "train")
            groups.append(((speaker, part), steps))
    names = (f"c{k}" for k in range(len(groups[0][1][0])))
    return _rows(("utterance", "step", *names, "speaker", "part"), groups)


_VOWELS = Task(
    "vowels",
    "sequences",
    "aeon==1.6.0",
    (
        (
            "aeon/datasets/data/JapaneseVowels/JapaneseVowels_TRAIN.ts",
            "68a430eabd919cc77f40b1f5f3bc0dcafacc1486bca9260785aeb7d262cc78cd",
        ),
        (
            "aeon/datasets/data/JapaneseVowels/JapaneseVowels_TEST.ts",
            "b3d41d6a0ca3bcad3afb9ca7d4365382aa51341e2e58bae2a574babdda5b9462",
        ),
    ),
    vowels,
    "840a57fcba0487da7fbb849894cb00535d0d5c6559fc8b0774eb5a4d779f4dc9",
    predict="speaker",
    horizon=0,
    time="step",
    group="utterance",
)
_DIGITS = Task(
    "digits",
    "sequences",
    "scikit-learn==1.9.1",
    (
        (
            "sklearn/datasets/data/digits.csv.gz",
            "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22",
        ),
    ),
    digits,
    "41a3e23e76146ba2ffe770dff6d29f74d94b937a2c31d3ae9c0b61588ab95d10",
    predict="digit",
    horizon=0,
    time="row",
    group="picture",
)
_PIXELS = ("--inputs", ",".join(f"c{k}" for k in range(8)))

SEQUENCES = (
    Question("speakers, 370 utterances", _VOWELS, ("--split-by", "column:part"), 95.0),
    Question("digits, drawn by chance", _DIGITS, ("--split-by", "stream", *_PIXELS), 97.0),
    Question("digits, the last 360", _DIGITS, ("--split-by", "column:part"), 92.0),
)


def measure_sequences(
    questions: Iterable[Question] = SEQUENCES,
    num_seeds: int = NUM_SEEDS,
    place: Path = PLACE,
    options: tuple[str, ...] = (),
) -> Iterator[Result]:
    """Train for each question with some seeds; yield the mean accuracy on the test part.

    ``options`` are more of `streamrnn train`. The reference is the best baseline of the report.
    """
    place.mkdir(parents=True, exist_ok=True)
    for question in questions:
        path = fetch(question.table, place)
        command = [*question.command(path, 0), "-o", "MODEL"]
        print("streamrnn " + shlex.join(command), flush=True)
        own, baselines = [], []
        for seed in range(num_seeds):
            report = report_of([*question.command(path, seed), *options])
            target = question.table.predict
            own.append(100 * report["errors"]["test"][target]["accuracy"])
            others = (errors[target]["accuracy"] for errors in report["baselines"].values())
            baselines.append(100 * max(others))
        spread = f", standard deviation {stdev(own):.1f}" if num_seeds > 1 else ""
        yield Result(
            "sequences",
            question.name,
            fmean(own),
            "%",
            "best baseline",
            fmean(baselines),
            note=f"seeds {', '.join(f'{value:.1f}' for value in own)}{spread}; "
            f"at least {question.wanted:g} % is wanted",
        )


def report_of(command: list[str]) -> dict[str, Any]:
    """Run ``streamrnn train ...`` in a process of its own; return the report of its model."""
    with tempfile.TemporaryDirectory(prefix="streamrnn-training-") as scratch:
        whole = [*command, "--json", "-o", str(Path(scratch) / "model.safetensors")]
        done = subprocess.run(
            [sys.executable, "-m", "streamrnn_server", *whole], capture_output=True, text=True
        )
        if done.returncode:
            raise BenchError(f"streamrnn {shlex.join(whole)}\n{done.stderr.strip()}")
    report: dict[str, Any] = json.loads(done.stdout)["report"]
    return report
