"""Every cell variant that takes the staged path."""

from __future__ import annotations

from typing import Any

from streamrnn.model.spec import LayerSpec

__all__ = ["FORMS", "form_of"]

FORMS: dict[str, dict[str, Any]] = {
    "gru_reset_before": {"cell": "gru", "reset_after": False},
    "gru_hard": {"cell": "gru", "gate_activation": "hard_sigmoid_sixth"},
    "gru_reset_before_hard": {
        "cell": "gru",
        "reset_after": False,
        "gate_activation": "hard_sigmoid_fifth",
    },
    "gru_norm": {"cell": "gru", "layer_norm": True},
    "gru_norm_hard": {
        "cell": "gru",
        "layer_norm": True,
        "norm_epsilon": 1e-3,
        "gate_activation": "hard_sigmoid_fifth",
    },
    "lstm_projected": {"cell": "lstm", "projection_size": 11},
    "lstm_peepholes": {"cell": "lstm", "peepholes": True},
    "lstm_peepholes_projected": {"cell": "lstm", "peepholes": True, "projection_size": 20},
    "lstm_hard": {"cell": "lstm", "gate_activation": "hard_sigmoid_fifth"},
    "lstm_peepholes_hard": {
        "cell": "lstm",
        "peepholes": True,
        "gate_activation": "hard_sigmoid_sixth",
    },
    "lstm_norm": {"cell": "lstm", "layer_norm": True},
    "lstm_norm_projected": {"cell": "lstm", "layer_norm": True, "projection_size": 5},
}


def form_of(name: str, hidden_size: int) -> LayerSpec:
    """Return a layer.

    Parameters
    ----------
    name : str
        A key of `FORMS`.
    hidden_size : int
        H.

    Returns
    -------
    LayerSpec
    """
    return LayerSpec(hidden_size=hidden_size, **FORMS[name])
