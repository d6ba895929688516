"""Specification of one recurrent layer: its cell, its size and its form.

The gate orders are stated once, in `CELLS`; the equations of every form in docs/cells.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from streamrnn.errors import SpecError
from streamrnn.model.checks import check_flag, check_one_of, check_size
from streamrnn.model.layers.base import Layer, Shape, joined

__all__ = ["CELLS", "CELL_ACTIVATIONS", "GATE_ACTIVATIONS", "CellKind", "LayerSpec"]


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
# Of a candidate, and of the cell state as the output sees it.
CELL_ACTIVATIONS = (
    "tanh",
    "relu",
    "sigmoid",
    "identity",
    "softsign",
    "hard_tanh",
    "elu",
    "softplus",
)


@dataclass(frozen=True)
class LayerSpec(Layer):
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
    cell_activation : str
        GRU and LSTM: what the candidate goes through, one of `CELL_ACTIVATIONS`.
    output_activation : str
        LSTM: what the cell state goes through on its way to the output, likewise.
    first_state : bool
        Whether new streams begin with parameters in place of zeros.
    """

    cell: str
    hidden_size: int
    reset_after: bool = True
    projection_size: int = 0
    peepholes: bool = False
    layer_norm: bool = False
    norm_epsilon: float = 1e-5
    gate_activation: str = "sigmoid"
    cell_activation: str = "tanh"
    output_activation: str = "tanh"
    first_state: bool = False

    def __post_init__(self) -> None:
        self.check_reads()
        check_one_of(self.cell, "unknown cell", CELLS)
        where = f"a {self.cell} layer"
        check_size(self.hidden_size, f"hidden_size of {where}")
        check_size(self.projection_size, f"projection_size of {where}", least=0)
        check_one_of(self.gate_activation, f"{where}: gate_activation is", GATE_ACTIVATIONS)
        for name in ("cell_activation", "output_activation"):
            check_one_of(getattr(self, name), f"{where}: {name} is", CELL_ACTIVATIONS)
        for name in ("reset_after", "peepholes", "layer_norm", "first_state"):
            check_flag(getattr(self, name), f"{where}: {name}")
        owners = {
            "reset_after": ("gru",),
            "projection_size": ("lstm",),
            "peepholes": ("lstm",),
            "layer_norm": ("gru", "lstm"),
            "gate_activation": ("gru", "lstm"),
            "cell_activation": ("gru", "lstm"),
            "output_activation": ("lstm",),
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
        activations = (self.cell_activation, self.output_activation)
        if self.layer_norm and activations != ("tanh", "tanh"):
            raise SpecError(f"{where}: layer_norm is published with tanh alone")
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

    @property
    def fixed_shape(self) -> Shape | None:
        """[1, output_size]."""
        return 1, self.output_size

    def output_shape(self, shapes: list[Shape]) -> Shape:
        """[1, output_size], whatever is read."""
        joined(shapes, f"a {self.cell} layer")
        return 1, self.output_size

    def parameter_shapes(self, shapes: list[Shape]) -> dict[str, tuple[int, ...]]:
        """Matrices, biases, and what the layer's form adds. See `parameter_shapes` of a model."""
        length, channels = joined(shapes, f"a {self.cell} layer")
        num_units, num_outputs = self.hidden_size, self.output_size
        num_rows = len(CELLS[self.cell].gates) * num_units
        named: dict[str, tuple[int, ...]] = {
            "weight_ih": (num_rows, length * channels),
            "weight_hh": (num_rows, num_outputs),
            "bias_ih": (num_rows,),
            "bias_hh": (num_rows,),
        }
        if self.projection_size:
            named["weight_hr"] = (num_outputs, num_units)
        if self.peepholes:
            named |= {f"weight_c{gate}": (num_units,) for gate in "ifo"}
        if self.layer_norm:
            named |= {"norm_weight_ih": (num_rows,), "norm_weight_hh": (num_rows,)}
            if self.cell == "lstm":
                named |= {"norm_weight_c": (num_units,), "norm_bias_c": (num_units,)}
        if self.first_state:
            sizes = zip(CELLS[self.cell].states, self.state_sizes, strict=True)
            named |= {f"first_{state}": (size,) for state, size in sizes}
        return named

    def describe(self) -> str:
        """Name the cell and what differs from PyTorch's default form of it."""
        parts = {
            "reset before the product": not self.reset_after,
            f"projection to {self.projection_size}": self.projection_size,
            "peepholes": self.peepholes,
            f"layer norm (epsilon {self.norm_epsilon:g})": self.layer_norm,
            f"{self.gate_activation} gates": self.gate_activation != LayerSpec.gate_activation,
            f"{self.cell_activation} candidate": self.cell_activation != "tanh",
            f"{self.output_activation} output": self.output_activation != "tanh",
        }
        present = [part for part, is_present in parts.items() if is_present]
        return f"{self.cell} with {' and '.join(present)}" if present else self.cell

    def summary(self) -> str:
        """Name the cell and its size."""
        projection = f"->{self.projection_size}" if self.projection_size else ""
        return f"{self.cell} {self.hidden_size}{projection}"

    @property
    def is_plain(self) -> bool:
        """Whether it computes as PyTorch's ``nn.RNN``, ``nn.GRU`` or ``nn.LSTM``."""
        same = {"name": self.name, "reads": self.reads, "first_state": self.first_state}
        return self == LayerSpec(self.cell, self.hidden_size, **same)  # type: ignore[arg-type]
