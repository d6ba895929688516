"""`streamrnn bench sequences`: how its tables are made, and what its commands measure."""

import gzip
import hashlib
from pathlib import Path

import numpy as np

from streamrnn_bench.training.fetch import PLACE
from streamrnn_bench.training.sequences import (
    NUM_LAST,
    SEQUENCES,
    Question,
    digits,
    measure_sequences,
    vowels,
)
from streamrnn_bench.training.task import Task
from tests.support.tables import write_csv


def test_digits_are_read_from_the_top_and_the_last_of_the_file_judge():
    lines = [",".join(str((k + j) % 17) for j in range(64)) + f",{k % 10}" for k in range(1797)]
    header, *rows = digits([gzip.compress("\n".join(lines).encode())])
    assert header == ["picture", "row", *(f"c{j}" for j in range(8)), "digit", "part"]
    assert rows[8 * 5 + 2] == ["5", "2", *(str((5 + 16 + j) % 17) for j in range(8)), "5", "train"]
    parts = [row[-1] for row in rows[::8]]
    wanted = ["train"] * (1797 - 2 * NUM_LAST) + ["validation"] * NUM_LAST + ["test"] * NUM_LAST
    assert parts == wanted


def test_every_fifth_utterance_of_a_speaker_to_learn_from_chooses():
    train = "@x 1\n@data\n" + "".join(f"{k},2:3,{k}:{1 + k % 2}\n" for k in range(10))
    header, *rows = vowels([train.encode(), b"@data\n7,8,9:1,2,3:2\n"])
    assert header == ["utterance", "step", "c0", "c1", "speaker", "part"]
    assert rows[:2] == [["0", "0", "0", "3", "1", "train"], ["0", "1", "2", "0", "1", "train"]]
    assert [row[0] for row in rows if row[-1] == "validation"] == ["8", "8", "9", "9"]
    assert [row[2:] for row in rows if row[0] == "10"] == [
        ["7", "1", "2", "test"], ["8", "2", "2", "test"], ["9", "3", "2", "test"],
    ]  # fmt: skip


def test_a_question_is_answered_by_the_printed_command(tmp_path, capsys):
    rng = np.random.default_rng(0)
    name = np.repeat(rng.choice(["up", "down"], 60), 4)
    x = np.where(name == "up", 1.0, -1.0) + rng.normal(0, 0.2, 240)
    path = write_csv(tmp_path, s=np.repeat(np.arange(60), 4), t=[*range(4)] * 60, x=x, name=name)
    task = Task(
        "data", "sequences", "none==0", (), lambda files: [],
        hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        predict="name", horizon=0, time="t", group="s",
    )  # fmt: skip
    question = Question("ways", task, ("--split-by", "stream"), 90.0)
    [result] = measure_sequences([question], 2, tmp_path, ("--epochs", "40"))
    assert result.value > 90
    assert result.note.startswith("seeds 1")
    printed = capsys.readouterr().out
    assert f"streamrnn train {path} --predict name --categorical name" in printed


def test_the_three_questions_are_of_two_tables():
    assert [question.wanted for question in SEQUENCES] == [95.0, 97.0, 92.0]
    assert {question.table.name for question in SEQUENCES} == {"vowels", "digits"}
    assert str(PLACE) == "build/training"
