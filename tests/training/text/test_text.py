"""`streamrnn train book.txt --tokens char`, `predict` and `sample` of the model."""

import argparse
import bz2
import collections
import csv
import gzip
import itertools
import lzma
import math
from typing import Any

import numpy as np
import pytest

from streamrnn import Engine, Model
from streamrnn.commands import evaluate as evaluate_command
from streamrnn.commands import inspect as inspect_command
from streamrnn.commands import predict as predict_command
from streamrnn.commands import sample as sample_command
from streamrnn.commands import train as train_command
from streamrnn.errors import DataError, InputError, ModelError, ModelFileError, TrainingError
from streamrnn.training import TrainingConfig, evaluate
from streamrnn.training.baselines.bigram import Bigram
from streamrnn.training.baselines.target import targets_of
from streamrnn.training.data.dataset import make_dataset
from streamrnn.training.data.reading import text_file
from streamrnn.training.data.reading.read import read_table
from streamrnn.training.train import train
from streamrnn_client.text import UNITS, UNKNOWN, Vocabulary, cut
from tests.support.models import text_model
from tests.support.tables import book

QUICK = {"epochs": 2, "layers": ("gru:6",), "batch_size": 4}


def run(module, *words):
    parser = argparse.ArgumentParser()
    module.configure(parser)
    return module.run(parser.parse_args([str(word) for word in words]))


def config_of(path, unit="char", **settings):
    return TrainingConfig(path=str(path), tokens=unit, **settings)


def dataset_of(path, unit="char", **settings):
    config = config_of(path, unit, **settings)
    return make_dataset(config, read_table(config.path, config.read_options(), config.kinds()))


@pytest.fixture
def text_path(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(book(), encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize("unit", UNITS)
def test_the_streams_tokens_are_the_text(text_path, unit):
    dataset = dataset_of(text_path, unit)
    [stream] = dataset.streams
    [item] = dataset.spec.inputs
    assert (item.kind, item.unit) == ("token", unit)
    assert item.categories == tuple(output.name for output in dataset.spec.outputs)
    tokens = stream.x[:, 0].astype(np.int64)
    assert Vocabulary(unit, item.categories).decode(tokens) == book()
    assert stream.target[:-1, 0].tolist() == tokens[1:].tolist()
    assert np.isnan(stream.target[-1, 0])
    assert stream.stops[2] == len(tokens) - 1


def test_the_vocabulary_is_the_training_parts_most_frequent_first(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("bbbaac" * 10 + "zzzz" * 10, encoding="utf-8")  # the first 60 % have no z
    dataset = dataset_of(path)
    assert dataset.spec.inputs[0].categories == (UNKNOWN, "b", "a", "c")
    assert dataset.config.vocabulary == 4
    tokens = dataset.streams[0].x[:, 0]
    assert tokens[:6].tolist() == [1, 1, 1, 2, 2, 3]
    assert set(tokens[60:]) == {0.0}  # what it does not know


def test_a_smaller_vocabulary_leaves_out_the_rarest(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("bbbaac" * 20, encoding="utf-8")
    assert dataset_of(path, vocabulary=3).spec.inputs[0].categories == (UNKNOWN, "b", "a")


def test_equally_frequent_pieces_are_in_the_order_of_letters(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("dcba" * 20, encoding="utf-8")
    assert dataset_of(path).spec.inputs[0].categories == (UNKNOWN, *"abcd")


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_text_is_the_text(tmp_path, text_path, compress):
    path = tmp_path / "book.z"
    path.write_bytes(compress(text_path.read_bytes()))
    own, other = (dataset_of(each).streams[0].x for each in (text_path, path))
    assert np.array_equal(own, other)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "cp1252"])
def test_a_text_of_another_encoding_is_read(tmp_path, encoding):
    text = "Füße und größere Höhlen. " * 10
    path = tmp_path / "book.txt"
    path.write_text(text, encoding=encoding)
    dataset = dataset_of(path, encoding=encoding)
    names = dataset.spec.inputs[0].categories
    assert Vocabulary("char", names).decode(dataset.streams[0].x[:, 0].astype(int)) == text


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"one\ntw\xffo\nthree", r"line 2: the bytes are no .*--encoding latin-1"),
        (b"one\ntwo\0\n" * 20, r"line 2: a character NUL.*utf-16"),
        (b"a", "holds 0 targets"),
        (b"aaaaaaa", "holds 3 targets"),
        (gzip.compress(b"a" * 100, mtime=0)[:-9], "damaged"),
        (b"PK\x03\x04" + b"a" * 100, "cannot be read as .npz"),
    ],
)
def test_what_is_no_text_to_learn_from_is_refused_by_name(tmp_path, data, says):
    path = tmp_path / "book.txt"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"book\.txt.*{says}|{says}.*book\.txt"):
        dataset_of(path)


def test_a_text_that_is_too_long_is_refused_before_it_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setattr(text_file, "MAX_TEXT_BYTES", 1 << 20)
    path = tmp_path / "book.txt.gz"
    path.write_bytes(gzip.compress(b"a" * (2 << 20)))
    with pytest.raises(DataError, match="more than 1 MiB"):
        dataset_of(path)


@pytest.mark.parametrize("unit", UNITS)
def test_a_text_of_one_token_alone_can_be_learnt(tmp_path, unit):
    path = tmp_path / "book.txt"
    path.write_text("\n" * 60, encoding="utf-8")
    result = train(config_of(path, unit, **QUICK | {"epochs": 40}))
    assert result.model.spec.inputs[0].categories == (UNKNOWN, "\n")
    assert result.report["errors"]["test"]["token"]["accuracy"] == 1.0


def test_huge_words_are_cut(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("x" * 200_000, encoding="utf-8")
    dataset = dataset_of(path, "word")
    assert dataset.spec.inputs[0].categories == (UNKNOWN, "x" * 64)
    assert len(dataset.streams[0].x) == 3125


@pytest.mark.parametrize(
    ("settings", "kind", "says"),
    [
        ({"horizon": (2,)}, TrainingError, r"horizon is \[2\]"),
        ({"vocabulary": 1}, TrainingError, "vocabulary is 1"),
        ({"vocabulary": 65_537}, TrainingError, "vocabulary is 65537"),
        ({"unit": "line"}, TrainingError, "char or word"),
        ({"predict": ("letter",)}, DataError, "no column 'letter'"),
        ({"group": ("page",)}, TrainingError, "group is"),
        ({"split_by": "stream"}, DataError, "1 stream cannot be split"),
        ({"loss": "mse"}, TrainingError, "mse cannot predict"),
    ],
)
def test_settings_that_a_text_has_no_use_for_are_refused(text_path, settings, kind, says):
    with pytest.raises(kind, match=says):
        dataset_of(text_path, **settings)


def test_tokens_of_a_table_are_refused(tmp_path):
    np.savez(tmp_path / "ids.npz", X=np.arange(100, dtype=np.uint8) % 7)
    for settings in ({"tokens": "char"}, {"vocabulary": 5}):
        config = TrainingConfig(path=str(tmp_path / "ids.npz"), **settings)
        with pytest.raises(TrainingError, match="read as a table"):
            make_dataset(config, read_table(config.path, config.read_options()))


@pytest.fixture(scope="module", params=UNITS)
def trained(request, tmp_path_factory):
    """Path of the model, of its text, and the unit."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "book.txt").write_text(book(300), encoding="utf-8", newline="")
    words = [folder / "book.txt", "--tokens", request.param, "--layers", "gru:12", "--epochs", 8]
    assert run(train_command, *words, "-o", folder / "m.safetensors") == 0
    return folder / "m.safetensors", folder / "book.txt", request.param


def test_the_configuration_repeats_the_training(trained, tmp_path):
    path, _, unit = trained
    config = TrainingConfig.read(path.with_suffix(".toml"))
    assert config.tokens == unit
    again = train(config).model
    assert again.fingerprint == Model.load(path).fingerprint


def test_predict_gives_every_token_with_what_was_expected(trained, tmp_path, capsys):
    path, text_path, unit = trained
    out = tmp_path / "out.csv"
    assert run(predict_command, path, text_path, "-o", out) == 0
    with out.open(newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file))
    assert header == ["token", "p", "expected", "p_expected"]
    assert "".join(row[0] for row in rows) == text_path.read_text(encoding="utf-8")
    assert rows[0][1:] == ["", "", ""]
    model = Model.load(path)
    names = model.spec.inputs[0].categories
    tokens = Vocabulary(unit, names).encode(text_path.read_text(encoding="utf-8"))
    y = Engine(model).steps("a", tokens[:, None])
    p = np.array([float(row[1]) for row in rows[1:]], np.float32)
    assert np.array_equal(p, y[np.arange(len(p)), tokens[1:]])
    assert [row[2] for row in rows[1:]] == [names[k] for k in y[:-1].argmax(axis=1)]
    # The test part's mean is the error of the report.
    reported = model.spec.training["errors"]["test"]["token"]
    first = len(tokens) - round(0.2 * len(tokens))
    own = -np.log(p[first - 1 :].astype(np.float64)).mean()
    assert reported["cross_entropy"] == pytest.approx(own, rel=1e-4)


def test_the_baselines_are_unigram_and_bigram_with_add_one(trained):
    """Counted here by dictionaries."""
    path, text_path, unit = trained
    model = Model.load(path)
    vocabulary = Vocabulary(unit, model.spec.inputs[0].categories)
    tokens = vocabulary.encode(text_path.read_text(encoding="utf-8")).tolist()
    first = round(0.8 * len(tokens))
    known, size = tokens[:first], len(vocabulary)
    ones = collections.Counter(known[1:])  # the targets
    pairs, before = collections.Counter(itertools.pairwise(known)), collections.Counter(known[:-1])
    losses: dict[str, list[float]] = {"constant": [], "bigram": []}
    right = 0
    for a, b in itertools.pairwise(tokens[first - 1 :]):
        losses["constant"].append(-math.log((ones[b] + 1) / (len(known) - 1 + size)))
        losses["bigram"].append(-math.log((pairs[a, b] + 1) / (before[a] + size)))
        right += b == min(range(size), key=[-pairs[a, k] for k in range(size)].__getitem__)
    found = model.spec.training["baselines"]
    assert set(found) == set(losses)
    for name, own in losses.items():
        assert found[name]["token"]["cross_entropy"] == pytest.approx(np.mean(own), rel=1e-9)
    assert found["bigram"]["token"]["accuracy"] == pytest.approx(right / len(losses["bigram"]))


def test_the_report_tells_nats_and_bits(trained, capsys):
    path, _, unit = trained
    assert run(inspect_command, path) == 0
    out = capsys.readouterr().out
    own = Model.load(path).spec.training["errors"]["test"]["token"]["cross_entropy"]
    [line] = [line for line in out.splitlines() if "this model" in line]
    assert f"{own:#.4g}" in line
    assert f"= {own / math.log(2):#.4g} bits per {unit}" in line
    assert "unigram" in out
    assert "bigram" in out


def test_evaluate_judges_another_text(trained, tmp_path, capsys):
    path, _, unit = trained
    other = tmp_path / "other.txt"
    other.write_text(book(80, seed=9) + "Ω", encoding="utf-8", newline="")
    assert run(evaluate_command, path, other) == 0
    out = capsys.readouterr().out
    model = Model.load(path)
    tokens = Vocabulary(unit, model.spec.inputs[0].categories).encode(other.read_text("utf-8"))
    y = Engine(model).steps("a", tokens[:, None]).astype(np.float64)
    own = -np.log(y[np.arange(len(tokens) - 1), tokens[1:]]).mean()
    [line] = [line for line in out.splitlines() if "this model" in line]
    assert f"{own:#.4g}" in line
    assert f"bits per {unit}" in line


def test_errors_of_many_classes_are_those_of_few(trained, monkeypatch):
    """Whether all outputs are kept or they are computed on the way."""
    path, _, _ = trained
    config = TrainingConfig.read(path.with_suffix(".toml")).replace(epochs=1)
    kept = train(config).report
    monkeypatch.setattr(evaluate, "MAX_KEPT", 0)
    carried = train(config).report
    for part in ("train", "validation", "test"):
        own, other = kept["errors"][part]["token"], carried["errors"][part]["token"]
        assert own == pytest.approx(other, rel=1e-5)


def test_a_damaged_bigram_is_refused(trained):
    spec = Model.load(trained[0]).spec
    config = TrainingConfig(path="x", predict=("token",), loss="cross_entropy", horizon=(1,))
    [target] = targets_of(config, spec)
    good = spec.training["fitted"]["token"]["bigram"]
    assert Bigram.from_dict(good, target).to_dict() == good
    pairs, counts = good["pairs"], good["counts"]
    damaged: tuple[dict[str, Any], ...] = (
        {},
        {"pairs": pairs, "counts": counts[1:]},
        {"pairs": pairs[::-1], "counts": counts},
        {"pairs": [-1, *pairs[1:]], "counts": counts},
        {"pairs": [*pairs[:-1], 10**12], "counts": counts},
        {"pairs": [*pairs[:-1], 10**30], "counts": counts},
        {"pairs": pairs, "counts": [0, *counts[1:]]},
        {"pairs": pairs, "counts": ["a"] * len(pairs)},
        {"pairs": [], "counts": []},
        {"pairs": [[1]], "counts": [[1]]},
    )
    for bad in damaged:
        with pytest.raises(ModelFileError, match="bigram"):
            Bigram.from_dict(bad, target)


def test_predict_judges_what_the_model_does_not_know_as_unknown(trained, tmp_path):
    path, _, unit = trained
    (tmp_path / "new.txt").write_text("The Ω on", encoding="utf-8")
    assert run(predict_command, path, tmp_path / "new.txt", "-o", tmp_path / "out.csv") == 0
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    assert "".join(row[0] for row in rows) == "The Ω on"
    model = Model.load(path)
    vocabulary = Vocabulary(unit, model.spec.inputs[0].categories)
    k = next(k for k, row in enumerate(rows) if "Ω" in row[0])
    y = Engine(model).steps("a", vocabulary.encode("The Ω on")[:, None])
    assert float(rows[k][1]) == pytest.approx(float(y[k - 1, vocabulary.unknown]), rel=1e-6)


def test_predict_takes_ids_of_a_text_models_tokens_as_ids(tmp_path):
    """A character that is a digit must not be taken for the token of that number."""
    model = text_model("char", list("210"))
    model.save(tmp_path / "m.safetensors")
    ids = np.array([1, 3, 2, 0, 1], np.uint8)
    np.savez(tmp_path / "ids.npz", X=ids)
    out = tmp_path / "out.csv"
    assert run(predict_command, tmp_path / "m.safetensors", tmp_path / "ids.npz", "-o", out) == 0
    found = np.loadtxt(out, delimiter=",", skiprows=1, dtype=np.float32)
    expected = Engine(model).steps("a", ids[:, None].astype(np.uint32))
    assert np.allclose(found, expected, rtol=1e-6)


def test_sample_with_temperature_0_is_the_argmax_of_the_steps(trained, capsys):
    path, _, unit = trained
    words = ["--text", "The cat", "-n", 30, "--temperature", 0]
    assert run(sample_command, path, *words) == 0
    drawn = capsys.readouterr().out
    assert drawn.endswith("\n")
    model = Model.load(path)
    vocabulary = Vocabulary(unit, model.spec.inputs[0].categories)
    engine, tokens = Engine(model), vocabulary.encode("The cat")
    y = engine.steps("a", tokens[:, None])[-1]
    expected = []
    for _ in range(30):
        y[vocabulary.unknown] = 0
        expected.append(int(y.argmax()))
        [y] = engine.steps("a", [[expected[-1]]])
    assert drawn[:-1] == vocabulary.decode(expected)


def test_sample_of_a_seed_is_the_same_again(trained, capsys):
    outs = []
    for seed in (1, 1, 2):
        assert run(sample_command, trained[0], "--text", "The", "-n", 40, "--seed", seed) == 0
        outs.append(capsys.readouterr().out)
    assert outs[0] == outs[1] != outs[2]


def test_sample_follows_the_models_probabilities(tmp_path):
    """Frequencies of pairs of tokens are the products of what the engine says."""
    from streamrnn_client.sampling import Sampler

    model = text_model("char", ["a", "b"])
    vocabulary = Vocabulary("char", model.spec.inputs[0].categories)
    engine, expected = Engine(model), {}
    for first, second in itertools.product((1, 2), repeat=2):
        y = engine.steps((first, second), [[1], [first]])
        shares = [y[0][first] / (1 - y[0][0]), y[1][second] / (1 - y[1][0])]
        expected[vocabulary.decode([first, second])] = float(np.prod(shares))
    assert sum(expected.values()) == pytest.approx(1, rel=1e-5)
    num_draws, counts = 400, dict.fromkeys(expected, 0)
    for seed in range(num_draws):
        drawn = "".join(sample_command.sample(model, Sampler(vocabulary, "a", 2, seed=seed)))
        counts[drawn] += 1
    for pair, share in expected.items():
        spread = np.sqrt(num_draws * share * (1 - share))
        assert abs(counts[pair] - num_draws * share) <= 4 * spread + 1, pair


def test_sample_begins_a_text_where_none_is_given(tmp_path, capsys):
    model = text_model("char", ["a", "b", "c"])
    model.save(tmp_path / "m.safetensors")
    outputs = []
    for words in ([], ["--text", "?"]):  # what the vocabulary lacks is the unknown token
        assert run(sample_command, tmp_path / "m.safetensors", "-n", 40, "--seed", 5, *words) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == 41
    assert set(outputs[0][:-1]) <= set("abc")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--text", ""], "text is ''"),
        (["--text", "a", "--temperature", "nan"], "temperature is nan"),
        (["--text", "a", "--top-p", "2"], "top_p is 2.0"),
        (["--text", "a", "-n", "-1"], "num_tokens is -1"),
    ],
)
def test_sample_says_what_cannot_be_used(tmp_path, words, says):
    text_model("char", ["a"]).save(tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=says):
        run(sample_command, tmp_path / "m.safetensors", *words)


def test_inspect_shows_names_on_one_line(tmp_path, capsys):
    text_model("char", ["\n", " ", "\x1b", "a"]).save(tmp_path / "m.safetensors")
    assert run(inspect_command, tmp_path / "m.safetensors") == 0
    out = capsys.readouterr().out
    assert r"<unknown>, '\n', ' ', '\x1b', a" in out
    assert "\x1b" not in out


def test_a_name_longer_than_a_file_may_hold_is_refused():
    with pytest.raises(ModelError, match="characters"):
        text_model("word", ["x" * 70_000])


def test_a_table_of_quoted_characters_keeps_spaces_and_line_ends(tmp_path):
    """The cells of one character a row, as a table."""
    text = 'To be, or "not"\n to be\n' * 30
    with (tmp_path / "chars.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["char"], *text])
    table = read_table(tmp_path / "chars.csv")
    column = table.column("char")
    assert "".join(column.texts(0, len(text))) == text


def test_labels_of_a_text_are_its_pieces(text_path):
    config = config_of(text_path, "word")
    [column] = read_table(config.path, config.read_options()).columns.values()
    pieces, codes = cut(book(), "word")
    assert column.labels == tuple(pieces)
    assert column.indices is not None
    assert np.array_equal(column.indices, codes)
