"""Copy memory: who gives back five symbols after forty steps, and what is said of who does not.

Five symbols of eight, blanks, a mark, and then the symbols are to be given back in their order; at
all other steps a blank (Hochreiter and Schmidhuber 1997, in the form of Arjovsky, Shah and Bengio,
"Unitary evolution recurrent neural networks", 2016).
"""

from typing import Any

import numpy as np
import pytest

import streamrnn

NUM_SEQUENCES, NUM_SYMBOLS, KINDS, NUM_BLANKS = 3000, 5, 8, 40
# Who remembers nothing knows the blanks, and of the symbols that all are as likely.
MEMORYLESS = NUM_SYMBOLS * np.log(KINDS) / (NUM_BLANKS + 2 * NUM_SYMBOLS)


@pytest.fixture(scope="module")
def sequences():
    rng = np.random.default_rng(0)
    symbols = rng.integers(1, KINDS + 1, (NUM_SEQUENCES, NUM_SYMBOLS))
    given = np.zeros((NUM_SEQUENCES, NUM_BLANKS + 2 * NUM_SYMBOLS), int)
    wanted = np.zeros_like(given)
    given[:, :NUM_SYMBOLS], wanted[:, -NUM_SYMBOLS:] = symbols, symbols
    given[:, NUM_SYMBOLS + NUM_BLANKS - 1] = KINDS + 1
    names = np.array([f"s{k}" for k in range(KINDS + 1)])
    return list(np.eye(KINDS + 2)[given]), list(names[wanted])


def trained(sequences: Any, layer: str, **settings: Any) -> Any:
    settings |= {"horizon": 0, "loss_on": "every", "noise": 0.0}
    settings |= {"updates": 1500, "batch_size": 32, "patience": 1000}
    return streamrnn.train(sequences, layers=[layer], **settings)


@pytest.mark.soak
def test_an_lstm_with_chrono_initialisation_gives_the_symbols_back(sequences):
    result = trained(sequences, "lstm:64", learning_rate=0.01, chrono_steps=50)
    assert result.report["errors"]["test"]["y"]["cross_entropy"] < 0.3 * MEMORYLESS
    says = [each.memory["says"] for each in result.history if each.memory]
    assert all("gradients reach 25 of 25 steps" in words for words in says)


@pytest.mark.soak
def test_a_simple_rnn_gives_nothing_back_and_its_gradients_are_said_not_to_reach(sequences):
    result = trained(sequences, "rnn_tanh:64", learning_rate=0.005)
    assert result.report["errors"]["test"]["y"]["cross_entropy"] > 0.9 * MEMORYLESS
    [layer] = result.report["memory"]["gradients"]["layers"]
    assert layer["reach"] < 12  # the symbols lie 45 steps back
    last = [each.memory for each in result.history if each.memory][-1]
    assert f"gradients reach {last['layers'][0]['reach'] + 1} of 25 steps" in last["says"]
    assert last["layers"][0]["reach"] < 12
