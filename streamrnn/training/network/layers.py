"""The recurrent layers that are trained here."""

from __future__ import annotations

from collections.abc import Mapping

from streamrnn.errors import TrainingError
from streamrnn.gradients.node import Node
from streamrnn.gradients.scratch import Array, State
from streamrnn.model.layers.base import Layer as AnyLayer
from streamrnn.model.spec import LayerSpec

__all__ = ["Array", "State", "make_layer"]


def make_layer(
    spec: AnyLayer, index: int, parameters: Mapping[str, Array], gradients: Mapping[str, Array]
) -> Node:
    """Build a spec's layer; raise `TrainingError` for a form that is only served.

    ``parameters`` and ``gradients`` are views by name (``weight_ih_l{index}`` and so on): read, and
    added to, never replaced.
    """
    if not isinstance(spec, LayerSpec):
        raise TrainingError(
            f"layer {index} is {spec.describe()}; recurrent layers alone are trained here"
        )
    if not spec.is_plain:
        raise TrainingError(
            f"layer {index} is {spec.describe()}; such a layer can be served but not trained here, "
            f"train a plain {spec.cell}, or import it ready"
        )
    from streamrnn.gradients.recurrent import Recurrent, Weights  # loads Numba

    names = [f"{name}_l{index}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    weights = Weights(*(parameters[name] for name in names))
    return Recurrent(spec.cell, weights, Weights(*(gradients[name] for name in names)))
