"""The demonstration of agreement: its grammar, its measures of units, and all of it."""

import csv
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamrnn.reference.gates import LayerGates
from streamrnn_bench.demo.agreement import scenario
from streamrnn_bench.demo.agreement.grammar import NUMBERS, Sentence, sentences, write_table
from streamrnn_bench.demo.agreement.learn import _NGram
from streamrnn_bench.demo.agreement.units import Unit, best_unit, measure_units
from streamrnn_bench.demo.output import Output

PLURAL_VERBS = {"are", "were", "have"}


@settings(max_examples=60)
@given(least=st.integers(0, 4), more=st.integers(0, 4), seed=st.integers(0, 1000))
def test_the_verb_agrees_with_the_subject_whatever_stands_between(least, more, seed):
    for sentence in sentences(5, (least, least + more), np.random.default_rng(seed)):
        words = sentence.words
        assert least <= sentence.num_distractors <= least + more
        assert (words[sentence.verb] in PLURAL_VERBS) == (sentence.number == 1)
        assert words[sentence.subject].endswith("s") == (sentence.number == 1)
        nouns = [word for word in words[: sentence.verb] if word.rstrip("s") in _SINGULAR]
        assert [int(word.endswith("s")) for word in nouns] == list(sentence.nouns)
        assert words[0] == "the"
        assert words[-1] == "."


_SINGULAR = {
    "key", "cabinet", "door", "table", "picture", "letter", "window", "boy", "girl", "teacher",
    "friend", "neighbour",
}  # fmt: skip


def test_the_table_asks_before_each_verb_and_nowhere_else(tmp_path):
    drawn = sentences(20, (0, 3), np.random.default_rng(0))
    write_table({"train": drawn[:15], "test": drawn[15:]}, tmp_path / "a.csv")
    with open(tmp_path / "a.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(each.words) for each in drawn)
    asked = [(k, row["next verb"]) for k, row in enumerate(rows) if row["next verb"]]
    assert [number for _, number in asked] == [NUMBERS[each.number] for each in drawn]
    for k, number in asked:
        assert (rows[k + 1]["word"] in PLURAL_VERBS) == (number == "plural")


def sentence(text, verb, number):
    return Sentence(tuple(text.split()), 1, verb, number, (number,))


def test_an_n_gram_takes_the_longest_words_that_it_has_seen():
    find = _NGram(
        [
            sentence("the key is here .", 2, 0),
            sentence("the old key of the doors is here .", 6, 0),
            sentence("the boys of the doors are here .", 5, 1),
            sentence("the girls of the doors are here .", 5, 1),
        ]
    )
    assert find(sentence("the girls of the doors are", 5, 1)) == 1  # girls of the doors
    assert find(sentence("the door key of the doors is", 6, 0)) == 0  # key of the doors
    assert find(sentence("the girl of the doors is", 5, 0)) == 1  # of the doors, twice of three
    assert find(sentence("the cat sat", 2, 1)) in (0, 1)


def test_a_unit_is_measured_by_what_it_tells_keeps_and_resets():
    told = [1, 0, 1, 0]
    drawn = [sentence("the key of the doors is here .", 5, number) for number in told]
    forget, cell = np.full((1, 32, 2), 0.5), np.zeros((1, 32, 2))
    for k, number in enumerate(told):
        start = 8 * k
        forget[0, start + 2 : start + 5, 0] = (0.8, 0.9, 1.0)
        forget[0, start, 0] = 0.1  # the first word of each sentence
        cell[0, start + 4] = (number, 0.7)
    found = LayerGates(0, "lstm", {"f": forget}, {"c": cell})
    first, second = measure_units(found, drawn)
    assert (first.tells, first.keeps, first.resets) == pytest.approx((1.0, 0.9, 0.1))
    assert (second.tells, second.keeps, second.resets) == pytest.approx((0.0, 0.5, 0.5))
    assert first.follows
    assert not second.follows
    assert best_unit([second, first]).index == 0


@pytest.mark.parametrize(
    ("unit", "follows"),
    [
        (Unit(0, -0.95, 0.85, 0.1), True),
        (Unit(0, 0.85, 0.85, 0.1), False),
        (Unit(0, 0.95, 0.75, 0.1), False),
        (Unit(0, 0.95, 0.85, 0.3), False),
    ],
)
def test_a_unit_follows_if_it_tells_keeps_and_resets(unit, follows, capsys):
    scenario._show_units([unit], Output())
    printed = " ".join(capsys.readouterr().out.split())
    assert unit.follows == follows
    assert ("Unit 0 does as the textbooks tell it" in printed) == follows
    assert ("No unit does as the textbooks tell it" in printed) == (not follows)


@pytest.mark.slow
def test_all_of_it_runs_and_draws(tmp_path, monkeypatch, capsys):
    for name, value in (("NUM_TRAIN", 1500), ("NUM_TEST", 200), ("NUM_LOOKED_AT", 60)):
        monkeypatch.setattr(scenario, name, value)
    picture = tmp_path / "a.png"
    options = scenario.Options(tmp_path / "agreement.safetensors", picture, 250)
    scenario.run_scenario(options, Output())
    printed = capsys.readouterr().out
    [lstm] = re.findall(r"the LSTM, 8 units +([\d.]+)% +([\d.]+)%", printed)
    [noun] = re.findall(r"number of the last noun +([\d.]+)% +([\d.]+)% +([\d.]+)%", printed)
    assert float(lstm[0]) > 99
    assert float(lstm[1]) > 90
    assert float(noun[1]) < 65
    assert float(noun[2]) == 0
    assert "as the textbooks tell it" in printed
    assert "line forget gate, dots input gate" in printed
    drawn = picture.exists() and picture.read_bytes()[:4] == b"\x89PNG"
    assert drawn or "needs the package matplotlib" in " ".join(printed.split())
