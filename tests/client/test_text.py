"""Text to tokens and back, and tokens drawn by their probabilities, without a server."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamrnn_client.errors import BadParams, BadValue, NotSupported
from streamrnn_client.inputs import ModelInfo
from streamrnn_client.sampling import Sampler
from streamrnn_client.text import MAX_WORD, UNITS, UNKNOWN, Vocabulary, cut

units = st.sampled_from(UNITS)
texts = st.one_of(
    st.text(),
    st.text(st.sampled_from(" \n\t\r\u00a0ab_7é\u0301ß<>.,'-\0\ud800\U0001f600")),
    st.lists(st.sampled_from([UNKNOWN, "the", " ", "\n", "x" * 70, "\ufffd"])).map("".join),
)


@given(texts, units)
def test_the_pieces_of_any_text_make_the_text_again(text, unit):
    pieces, codes = cut(text, unit)
    assert "".join(pieces[k] for k in codes) == text
    assert len(set(pieces)) == len(pieces)
    assert UNKNOWN not in pieces
    assert all(1 <= len(piece) <= MAX_WORD + 1 for piece in pieces)


@given(texts, texts, units)
def test_what_a_vocabulary_knows_comes_back_and_the_rest_as_unknown(text, other, unit):
    pieces, _ = cut(text, unit)
    vocabulary = Vocabulary(unit, [UNKNOWN, *pieces])
    tokens = vocabulary.encode(text)
    assert vocabulary.decode(tokens) == text
    assert vocabulary.unknown not in tokens
    others, codes = cut(other, unit)
    expected = [others[k] if others[k] in pieces else "\ufffd" for k in codes]
    assert vocabulary.decode(vocabulary.encode(other)) == "".join(expected)
    assert len(vocabulary.encode(other)) == len(codes)


def test_words_are_cut_as_the_documentation_says():
    text = "Don't  say\n 'yes' twice, x_1!"
    pieces, codes = cut(text, "word")
    assert [pieces[k] for k in codes] == [
        "Don", "'", "t", " ", " say", "\n", " '", "yes", "'", " twice", ",", " x_1", "!",
    ]  # fmt: skip


def test_a_run_of_letters_longer_than_a_word_is_several():
    pieces, codes = cut("a" * (2 * MAX_WORD + 1), "word")
    assert [len(pieces[k]) for k in codes] == [MAX_WORD, MAX_WORD, 1]


@pytest.mark.parametrize(
    ("unit", "names"),
    [
        ("char", ["a", "b"]),  # no unknown token
        ("char", [UNKNOWN, "ab"]),
        ("char", [UNKNOWN, ""]),
        ("word", [UNKNOWN, "a", "a"]),
        ("line", [UNKNOWN, "a"]),
    ],
)
def test_names_that_are_no_vocabulary_are_refused(unit, names):
    with pytest.raises(ValueError, match=r"vocabulary|character"):
        Vocabulary(unit, names)


@pytest.mark.parametrize("tokens", [[3], [-1], [1.0], [[1]], ["a"]])
def test_what_is_no_token_cannot_be_decoded(tokens):
    with pytest.raises(ValueError, match="token"):
        Vocabulary("char", [UNKNOWN, "a", "b"]).decode(tokens)


P = np.array([0.3, 0.1, 0.25, 0.05, 0.2, 0.1, 0.0])  # the first is the unknown token
VOCABULARY = Vocabulary("char", [UNKNOWN, *"abcdef"])


def expected_shares(p, temperature, top_k, top_p):
    """Compute the probabilities by the definition, token by token."""
    p = p.copy()
    p[0] = 0.0
    p = p ** (1.0 / temperature)
    p /= p.sum()
    ranked = sorted(range(len(p)), key=lambda k: (-p[k], k))
    if top_k:
        ranked = ranked[:top_k]
    total = sum(p[k] for k in ranked)
    kept, so_far = [], 0.0
    for k in ranked:
        kept.append(k)
        so_far += p[k] / total
        if so_far >= top_p - 1e-12:
            break
    shares = np.zeros(len(p))
    shares[kept] = p[kept] / p[kept].sum()
    return shares


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.5, 0, 1.0), (3.0, 0, 1.0), (1.0, 3, 1.0), (1.0, 0, 0.6), (2.0, 4, 0.7)],
)
def test_tokens_are_drawn_by_their_probabilities(temperature, top_k, top_p):
    sampler = Sampler(VOCABULARY, "a", temperature=temperature, top_k=top_k, top_p=top_p, seed=11)
    num_draws = 20_000
    drawn = np.bincount([sampler.draw(P)[0] for _ in range(num_draws)], minlength=len(P))
    expected = expected_shares(P, temperature, top_k, top_p)
    assert np.all(drawn[expected == 0] == 0)
    spread = np.sqrt(num_draws * expected * (1 - expected))
    assert np.all(np.abs(drawn - num_draws * expected) <= 4 * spread)


def test_temperature_0_takes_the_most_probable_known_token():
    assert Sampler(VOCABULARY, "a", temperature=0).draw(P) == (2, "b")


def test_a_share_of_almost_nothing_leaves_the_most_probable_token():
    sampler = Sampler(VOCABULARY, "a", top_p=1e-300, seed=0)
    assert {sampler.draw(P)[0] for _ in range(50)} == {2}


def test_the_same_seed_draws_the_same_tokens():
    one, other = (Sampler(VOCABULARY, "a", seed=5) for _ in range(2))
    assert [one.draw(P) for _ in range(50)] == [other.draw(P) for _ in range(50)]


@pytest.mark.parametrize("y", [[1, 0, 0, 0, 0, 0, 0], [np.nan] * 7])
def test_outputs_that_leave_nothing_to_draw_are_refused(y):
    with pytest.raises(BadValue, match="probability"):
        Sampler(VOCABULARY, "a").draw(y)


@pytest.mark.parametrize(
    "given",
    [
        {"text": ""},
        {"text": b"a"},
        {"num_tokens": -1},
        {"num_tokens": 1.5},
        {"temperature": -1},
        {"temperature": 1e-320},
        {"temperature": float("nan")},
        {"temperature": True},
        {"top_k": -1},
        {"top_k": 2.0},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"seed": -1},
        {"seed": "a"},
    ],
)
def test_parameters_that_cannot_be_used_are_named(given):
    with pytest.raises(BadParams, match=next(iter(given))):
        Sampler(VOCABULARY, **{"text": "a", **given})


def info(names=(UNKNOWN, "a", "b"), outputs=None, unit="char", head="softmax", kind="token"):
    token = {"name": "token", "kind": kind, "unit": unit, "categories": list(names)}
    outputs = [{"name": name} for name in (names if outputs is None else outputs)]
    spec = {"inputs": [token], "outputs": outputs, "head": {"activation": head}}
    return ModelInfo({"name": "m", "fingerprint": "0", "spec": spec, "row_bytes": 64})


def test_a_text_model_takes_a_text_where_it_takes_tokens():
    model = info()
    assert model.steps_array("abxa").tolist() == [[1], [2], [0], [1]]
    assert model.step_array("b").tolist() == [2]
    assert model.decode([1, 0, 2]) == "a\ufffdb"
    with pytest.raises(BadValue, match="no token 3"):
        model.decode([3])


@pytest.mark.parametrize(
    "model",
    [
        info(unit=""),
        info(names=("a", "b")),
        info(names=(UNKNOWN, "long")),
        info(names=(), outputs=("y",)),
    ],
)
def test_a_model_that_is_not_of_text_takes_none(model):
    with pytest.raises(NotSupported, match="text"):
        model.encode("ab")
    with pytest.raises((BadValue, NotSupported), match=r"token ids|no vocabulary"):
        model.steps_array("ab")


@pytest.mark.parametrize("model", [info(outputs=("yes", "no")), info(head="identity")])
def test_a_text_model_that_predicts_no_token_draws_none(model):
    assert model.encode("ab").tolist() == [1, 2]
    with pytest.raises(NotSupported, match="does not predict the next token"):
        model.sampler("a", 1)


def test_a_word_that_is_not_known_is_unknown_though_others_are_called_other_and_missing():
    model = info(unit="word", names=(UNKNOWN, "other", "missing"))
    for words in (["foo", "other", "missing"], np.array(["foo", "other", "missing"])):
        assert model.steps_array({"token": words}).tolist() == [[0], [1], [2]]
    with pytest.raises(BadValue):
        model.steps_array({"token": [None]})
