"""Specification of one recurrent layer: its cell, its size and its form.

The gate orders are stated once, in `CELLS`; the equations of every form in docs/cells.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from streamrnn.errors import SpecError
from streamrnn.model.checks import check_flag, check_one_of, check_size

__all__ = ["CELLS", "GATE_ACTIVATIONS", "CellKind", "LayerSpec"]


@dataclass(frozen=True)
class CellKind:
    """Gates and state of one kind of cell."""

    # row blocks of weight_ih and weight_hh, each of H rows, in PyTorch's order
    gates: tuple[str, ...]
    states: tuple[str, ...]  # vectors of H floats that a stream keeps between two steps


CELLS: Mapping[str, CellKind] = {
    "rnn_tanh": CellKind(gates=("h",), states=("h",)),
    "rnn_relu": CellKind(gates=("h",), states=("h",)),
    "gru": CellKind(gates=("r", "z", "n"), states=("h",)),
    "lstm": CellKind(gates=("i", "f", "g", "o"), states=("h", "c")),
}
# The two published hard sigmoids differ in their slope: clip(x / 5 + 1/2) is the one of Keras 2 and
# of ONNX, clip(x / 6 + 1/2) = relu6(x + 3) / 6 the one of PyTorch and of Keras 3.
GATE_ACTIVATIONS = ("sigmoid", "hard_sigmoid_fifth", "hard_sigmoid_sixth")


@dataclass(frozen=True)
class LayerSpec:
    """One recurrent layer, with the defaults PyTorch's; docs/cells.md has every form.

    Attributes
    ----------
    cell : str
        A key of `CELLS`.
    hidden_size : int
        H; the size of the cell state where there is one.
    reset_after : bool
        GRU: whether the reset gate scales ``W_hn h + b_hn`` (True) or h before the product.
    projection_size : int
        LSTM: R, the size of h where it is a projection of H units; 0 for none.
    peepholes : bool
        LSTM: whether the gates see the cell state.
    layer_norm : bool
        GRU and LSTM: whether the products with x and with h are normalised.
    norm_epsilon : float
        What is added to the variance there.
    gate_activation : str
        GRU and LSTM: one of `GATE_ACTIVATIONS`.
    """

    cell: str
    hidden_size: int
    reset_after: bool = True
    projection_size: int = 0
    peepholes: bool = False
    layer_norm: bool = False
    norm_epsilon: float = 1e-5
    gate_activation: str = "sigmoid"

    def __post_init__(self) -> None:
        check_one_of(self.cell, "unknown cell", CELLS)
        where = f"a {self.cell} layer"
        check_size(self.hidden_size, f"hidden_size of {where}")
        check_size(self.projection_size, f"projection_size of {where}", least=0)
        check_one_of(self.gate_activation, f"{where}: gate_activation is", GATE_ACTIVATIONS)
        for name in ("reset_after", "peepholes", "layer_norm"):
            check_flag(getattr(self, name), f"{where}: {name}")
        owners = {
            "reset_after": ("gru",),
            "projection_size": ("lstm",),
            "peepholes": ("lstm",),
            "layer_norm": ("gru", "lstm"),
            "gate_activation": ("gru", "lstm"),
        }
        for name, cells in owners.items():
            if self.cell not in cells and getattr(self, name) != getattr(LayerSpec, name):
                raise SpecError(f"{where} has no {name}; it is for {' and '.join(cells)}")
        self._check_norm(where)

    def _check_norm(self, where: str) -> None:
        epsilon = self.norm_epsilon
        if not isinstance(epsilon, float) or not 1e-12 <= epsilon <= 1.0:
            raise SpecError(f"{where}: norm_epsilon is {epsilon!r}; it must be from 1e-12 to 1")
        if not self.layer_norm and epsilon != LayerSpec.norm_epsilon:
            raise SpecError(f"{where}: norm_epsilon needs layer_norm")
        if self.layer_norm and self.peepholes:
            raise SpecError(
                f"{where}: layer_norm with peepholes is published nowhere; choose one of them"
            )
        if self.layer_norm and not self.reset_after:
            raise SpecError(
                f"{where}: layer_norm is published for the reset after the product; "
                "leave reset_after at true"
            )

    @property
    def output_size(self) -> int:
        """Number of elements of h: R with a projection, else H."""
        return self.projection_size or self.hidden_size

    @property
    def state_sizes(self) -> tuple[int, ...]:
        """Number of elements of each state, in the order of `CELLS`: h, and c."""
        return (self.output_size, self.hidden_size)[: len(CELLS[self.cell].states)]

    def describe(self) -> str:
        """Name the cell and what differs from PyTorch's default form of it."""
        parts = {
            "reset before the product": not self.reset_after,
            f"projection to {self.projection_size}": self.projection_size,
            "peepholes": self.peepholes,
            f"layer norm (epsilon {self.norm_epsilon:g})": self.layer_norm,
            f"{self.gate_activation} gates": self.gate_activation != LayerSpec.gate_activation,
        }
        present = [part for part, is_present in parts.items() if is_present]
        return f"{self.cell} with {' and '.join(present)}" if present else self.cell

    @property
    def is_plain(self) -> bool:
        """Whether it is the form of PyTorch's ``nn.RNN``, ``nn.GRU`` or ``nn.LSTM``."""
        return self == LayerSpec(self.cell, self.hidden_size)
