"""Options for what a state dict does not hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["TorchOptions", "names_of"]


@dataclass(frozen=True)
class TorchOptions:
    """What the caller says of a state dict.

    An activation is one of `LAYER_ACTIVATIONS`, with a slope after a colon where it has one
    (``leaky_relu:0.2``), or ``prelu:NAME`` with the slopes of a module.

    Attributes
    ----------
    layers : sequence of str or None
        Everything in the order of the data: names of modules, and activations. A normalisation may
        have its epsilon after a colon, a causal convolution over steps its dilation.
    prefix : str or None
        Names of the recurrent layers up to ``weight_ih_l0``; None takes all. Given, tensors that
        belong to no part of the model are left out.
    order : sequence of str or None
        Prefixes of several recurrent modules in the order of the data; None finds it.
    between : str or sequence of str
        Activation after each recurrent module but the last.
    causal_conv : str or None
        Name of a convolution over steps before everything else, with its dilation after a colon.
    before : sequence of str or None
        Names of linear layers before the recurrent ones, ``none`` for none; None finds them.
    before_activation : sequence of str or None
        What follows each of them.
    head : str, sequence of str or None
        Names of the linear layers after them, ``none`` for no head; None finds them.
    head_input : str
        Activation between the recurrent layers and the linear ones.
    embedding : str or None
        Name of the embedding, ``none`` for no embedding; None finds it.
    activation : str or sequence of str
        Activation after each of the linear layers after the recurrent ones.
    nonlinearity : str or None
        ``tanh`` or ``relu`` for ``nn.RNN``; None is tanh, PyTorch's default.
    skip : float or None
        The first inputs, times this, are added to the outputs.
    first_state : str, sequence of str or None
        ``zeros`` leaves a trained first state out; names of tensors, h0 and c0 of every module in
        the order of the data (``zeros`` for one that is not there), keep it.
    inputs, outputs : sequence of str or None
        Names; None numbers them: ``x0``, ``x1``, ... and ``y0``, ``y1``, ...
    """

    layers: Sequence[str] | None = None
    prefix: str | None = None
    order: Sequence[str] | None = None
    between: str | Sequence[str] | None = None
    causal_conv: str | None = None
    before: str | Sequence[str] | None = None
    before_activation: str | Sequence[str] | None = None
    head: str | Sequence[str] | None = None
    head_input: str = "identity"
    embedding: str | None = None
    activation: str | Sequence[str] = "identity"
    nonlinearity: str | None = None
    skip: float | None = None
    first_state: str | Sequence[str] | None = None
    inputs: Sequence[str] | None = None
    outputs: Sequence[str] | None = None

    @property
    def zero_state(self) -> bool:
        """Whether a first state is to be left out."""
        return names_of(self.first_state) == ("zeros",)


def names_of(given: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Return one name or several as a tuple; ``none`` is an empty one."""
    if given is None:
        return None
    names = (given,) if isinstance(given, str) else tuple(given)
    return () if names == ("none",) else names
