"""Text in and text out, with the real server."""

import asyncio
import itertools

import numpy as np
import pytest

from streamrnn import Engine
from streamrnn.commands.sample import sample
from streamrnn_client import Client, aio
from streamrnn_client.errors import BadParams, NotSupported
from streamrnn_client.sampling import Sampler
from streamrnn_client.text import Vocabulary, cut
from streamrnn_server.testing import serving
from tests.support.models import random_model, text_model
from tests.support.tables import book

numbers = itertools.count()


@pytest.fixture(scope="module")
def models():
    text = book()
    return {
        "char": text_model("char", cut(text, "char")[0]),
        "word": text_model("word", cut(text, "word")[0]),
        "numbers": random_model(np.random.default_rng(5)),
    }


@pytest.fixture(scope="module")
def address(models):
    with serving(models) as server:
        yield server.endpoints[0]


@pytest.fixture
def client(address):
    with Client(address) as client:
        yield client


def vocabulary_of(model):
    [item] = model.spec.inputs
    return Vocabulary(item.unit, item.categories)


@pytest.mark.parametrize("unit", ["char", "word"])
def test_a_text_is_stepped_as_its_tokens(models, client, unit):
    stream = client.stream(f"s{next(numbers)}", model=unit)
    tokens = vocabulary_of(models[unit]).encode(book())
    assert stream.model.encode(book()).tolist() == tokens.tolist()
    assert stream.model.decode(tokens) == book()
    expected = Engine(models[unit]).steps("a", tokens[:, None])
    assert np.array_equal(stream.steps(book()), expected)
    assert stream.last_seq == len(tokens)


def test_what_was_yielded_is_in_the_streams_state(models, client):
    stream = client.stream(f"s{next(numbers)}", model="char")
    pieces = list(itertools.islice(stream.sample("The cat", seed=4), 50))
    assert stream.last_seq == len("The cat") + 50
    tokens = vocabulary_of(models["char"]).encode("The cat" + "".join(pieces) + ".")
    assert np.array_equal(stream.step("."), Engine(models["char"]).steps("a", tokens[:, None])[-1])


def test_sampling_with_temperature_0_takes_the_largest_output(models, client):
    stream = client.stream(f"s{next(numbers)}", model="word")
    pieces = list(stream.sample("The cat", 40, temperature=0))
    vocabulary = vocabulary_of(models["word"])
    tokens = vocabulary.encode("The cat" + "".join(pieces))
    y = client.stream(f"s{next(numbers)}", model="word").steps(tokens)
    y[:, vocabulary.unknown] = 0
    drawn = tokens[len(vocabulary.encode("The cat")) :]
    assert drawn.tolist() == y.argmax(axis=1)[-len(drawn) - 1 : -1].tolist()


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_k": 9, "top_p": 0.9}])
def test_server_event_loop_and_process_draw_the_same_text(models, address, client, settings):
    settings = {**settings, "seed": 7}
    drawn = list(client.stream(f"s{next(numbers)}", model="char").sample("On", 60, **settings))

    async def draw():
        async with aio.Client(address) as other:
            stream = await other.stream(f"s{next(numbers)}", model="char")
            return [piece async for piece in stream.sample("On", 60, **settings)]

    assert asyncio.run(draw()) == drawn
    sampler = Sampler(vocabulary_of(models["char"]), "On", 60, **settings)
    assert list(sample(models["char"], sampler)) == drawn
    assert len(set(drawn)) > 5


def test_unknown_and_hostile_text_is_the_unknown_token(models, client):
    stream = client.stream(f"s{next(numbers)}", model="char")
    text = "T\0\U0001f600\ud800e"
    unknown = vocabulary_of(models["char"]).unknown
    assert stream.model.encode(text)[1:4].tolist() == [unknown] * 3
    assert stream.steps(text).shape == (5, stream.model.output_size)
    assert "\ufffd" not in "".join(stream.sample("\0\0", 100, temperature=5.0, seed=1))


@pytest.mark.parametrize("kind", ["char", "word"])
def test_a_new_stream_begins_a_text_with_the_unknown_token(models, client, kind):
    """What is drawn is what the unknown token leads to, in the server as in this process."""
    stream, other = (client.stream(f"s{next(numbers)}", model=kind) for _ in range(2))
    drawn = list(stream.sample(num_tokens=30, seed=3))
    assert stream.last_seq == 31
    unknown = vocabulary_of(models[kind]).unknown
    assert drawn == list(other.sample("\0", 30, seed=3))
    assert other.model.encode("\0").tolist() == [unknown]
    sampler = stream.model.sampler(None, 30, seed=3)
    assert list(sample(models[kind], sampler)) == drawn


def test_a_long_text_before_the_first_draw_goes_in_blocks(client):
    stream = client.stream(f"s{next(numbers)}", model="char")
    next(stream.sample("The cat. " * 1000, seed=1))
    assert stream.last_seq == 9001


def test_what_cannot_be_sampled_is_refused_before_a_step(client):
    stream = client.stream(f"s{next(numbers)}", model="char")
    with pytest.raises(BadParams, match="text is ''"):
        stream.sample("", 1)
    with pytest.raises(BadParams, match="temperature"):
        stream.sample("a", 1, temperature=-1)
    assert stream.last_seq == 0
    other = client.stream(f"s{next(numbers)}", model="numbers")
    with pytest.raises(NotSupported, match="takes no text"):
        other.sample("a", 1)
