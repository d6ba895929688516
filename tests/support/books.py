"""Texts to train on, and models of text with random weights."""

from __future__ import annotations

import numpy as np

from streamrnn import Model
from streamrnn.model.spec import HeadSpec, InputSpec, LayerSpec, ModelSpec, OutputSpec
from streamrnn.training.network.network import initial_parameters
from streamrnn_client.text import UNKNOWN

__all__ = ["book", "text_model"]


def book(num_sentences: int = 60, seed: int = 0) -> str:
    """Return sentences of a small grammar, in which some words decide the next ones."""
    rng = np.random.default_rng(seed)
    text = []
    for _ in range(num_sentences):
        noun, verb = [("cat", "sits"), ("cats", "sit")][rng.integers(2)]
        text.append(f"The {noun} on the {rng.choice(['mat', 'roof', 'wall'])} {verb}.\n")
    return "".join(text)


def text_model(unit: str, pieces: list[str], seed: int = 3, scale: float = 3.0) -> Model:
    """Return a model that predicts the next of some pieces, with weights drawn at random."""
    names = (UNKNOWN, *pieces)
    token = InputSpec(
        "token",
        unit=unit,
        kind="token",
        categories=names,
        num_categories=len(names),
        embedding_size=5,
    )
    spec = ModelSpec(
        inputs=(token,),
        layers=(LayerSpec("gru", 8),),
        outputs=tuple(OutputSpec(name) for name in names),
        head=HeadSpec("softmax"),
    )
    drawn = initial_parameters(spec, np.random.default_rng(seed))
    return Model(spec, {name: (scale * value).astype(np.float32) for name, value in drawn.items()})
