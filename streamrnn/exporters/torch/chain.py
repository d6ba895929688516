"""Stacks of recurrent layers as PyTorch's own modules, which take whole sequences.

A state dict holds no scales and no graph. Scales and centres of inputs and outputs are multiplied
into the layers beside them; the graph is the module's text, which the command prints.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from streamrnn.errors import SpecError
from streamrnn.exporters.network import Answer, Exported, refuse
from streamrnn.importers.original.trial import num_trial_steps, trial_inputs
from streamrnn.importers.proof import TOLERANCE
from streamrnn.model.model import Model
from streamrnn.model.spec import InputSpec, LayerSpec, ModelSpec, OutputSpec
from streamrnn.reference.model import ReferenceModel

__all__ = ["export_chain"]

_FIELDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
_HEADS = {
    "identity": "{0}",
    "tanh": "torch.tanh({0})",
    "sigmoid": "torch.sigmoid({0})",
    "softmax": "torch.softmax({0}, dim=-1)",
}


def export_chain(model: Model) -> Exported:
    """Write a model as a state dict of ``torch.nn``'s modules for sequences.

    Raises `ModelError` if it has none for what the model does: all of that is listed.
    """
    try:
        layers = model.spec.chain
    except SpecError as error:
        raise refuse("PyTorch", [str(error)]) from error
    problems = _problems_of_ends(model.spec)
    tensors: dict[str, NDArray[np.float32]] = {}
    made, used = [], []
    size = model.spec.num_features
    if model.spec.is_token:
        item = model.spec.inputs[0]
        tensors["embedding.weight"] = model.parameters[f"embedding.{item.name}.weight"]
        made.append(f"self.embedding = torch.nn.Embedding({item.num_categories}, {size})")
        used.append("x = self.embedding(x)")
    plain = model if problems else _folded(model, problems)
    for k, layer in enumerate(layers):
        text, own, own_problems = _LAYERS[type(layer)](plain, k, layer, size)
        problems += own_problems
        tensors |= {f"rnn{k}.{name}": value for name, value in own.items()}
        made.append(f"self.rnn{k} = {text}")
        used.append(f"x, after{k} = self.rnn{k}(x, states[{k}])")
        size = layer.output_size
    if problems:
        raise refuse("PyTorch", problems)
    result = "x"
    options = []
    if plain.spec.head is not None:
        tensors |= {f"head.{name}": plain.parameters[f"head.{name}"] for name in ("weight", "bias")}
        made.append(f"self.head = torch.nn.Linear({size}, {plain.spec.output_size})")
        result = _HEADS[plain.spec.head.activation].format("self.head(x)")
        if plain.spec.head.activation != "identity":
            options.append(f"--activation {plain.spec.head.activation}")
    cells = {layer.cell for layer in layers}
    lines = [f"  {name:<20} {list(value.shape)}" for name, value in tensors.items()]
    if "rnn_relu" in cells:
        options.append("--nonlinearity relu")
    if {"rnn_relu", "rnn_tanh"} <= cells:
        lines.append("note: `streamrnn import` takes one nonlinearity for all simple layers")
    elif options:
        lines.append(f"note: `streamrnn import` of it needs {' '.join(options)}")
    text = _module(made, used, result, len(layers))
    data = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    return Exported(data, "torch", lambda x: _answers(text, tensors, plain, x), lines, text)


def _problems_of_ends(spec: ModelSpec) -> list[str]:
    problems = []
    if spec.mask_value is not None:
        problems.append("it leaves masked steps out (mask_value)")
    for item in spec.inputs:
        if item.shape:
            problems.append(f"input {item.name!r} has a shape")
        if item.has_memory or item.missing != "error":
            what = "difference" if item.difference else f"missing: {item.missing}"
            problems.append(f"input {item.name!r} has a transform of its own ({what})")
        if item.kind == "categorical":
            problems.append(f"input {item.name!r} is categorical, beside others")
    problems += [
        f"output {item.name!r} is added to the level of {item.difference_of!r}"
        for item in spec.outputs
        if item.difference_of is not None
    ]
    return problems


def _folded(model: Model, problems: list[str]) -> Model:
    """Multiply scales and centres into the first layer and the head; note if that costs much."""
    spec, parameters = model.spec, dict(model.parameters)
    if not spec.is_token:
        scales = np.array([item.scale for item in spec.inputs])
        shifts = np.array([item.center for item in spec.inputs]) / scales
        weight = parameters["weight_ih_l0"].astype(np.float64)
        parameters["weight_ih_l0"] = (weight / scales).astype(np.float32)
        bias = parameters["bias_ih_l0"] - weight @ shifts
        parameters["bias_ih_l0"] = bias.astype(np.float32)
        spec = replace(spec, inputs=tuple(InputSpec(item.name) for item in spec.inputs))
    if spec.head is not None:
        scales = np.array([item.scale for item in spec.outputs])
        centers = np.array([item.center for item in spec.outputs])
        weight, bias = parameters["head.weight"] * scales[:, None], parameters["head.bias"] * scales
        parameters["head.weight"] = weight.astype(np.float32)
        parameters["head.bias"] = (bias + centers).astype(np.float32)
        spec = replace(spec, outputs=tuple(OutputSpec(item.name) for item in spec.outputs))
    folded = Model(spec, parameters)
    x = trial_inputs(model.spec, 1, num_trial_steps(model))
    exact = ReferenceModel(model).steps(x)
    error = np.abs(ReferenceModel(folded).steps(x) - exact).max(axis=(0, 1))
    if (error > TOLERANCE * np.ptp(exact, axis=(0, 1))).any():
        problems.append(
            "scales and centres of its inputs or outputs lose too much when they are multiplied "
            f"into the layers beside them (an error of {error.max():.2g}); a state dict holds none"
        )
    return folded


def _recurrent(
    model: Model, k: int, layer: LayerSpec, size: int
) -> tuple[str, dict[str, NDArray[np.float32]], list[str]]:
    """Return the module's text, its tensors, and what it cannot do."""
    where = f"layer {k} ({layer.describe()})"
    problems = [
        f"{where} has {what}, which no module of torch.nn has"
        for has_it, what in (
            (layer.peepholes, "peepholes"),
            (layer.projection_size >= layer.hidden_size, "a projection to as many units"),
            (layer.layer_norm, "a layer normalisation within the cell"),
            (not layer.reset_after, "its reset before the product"),
            (layer.gate_activation != "sigmoid", f"the gates' function {layer.gate_activation}"),
            (layer.cell_activation != "tanh", f"the candidate's {layer.cell_activation}"),
            (layer.output_activation != "tanh", f"the output's {layer.output_activation}"),
            (layer.first_state, "a trained first state"),
        )
        if has_it
    ]
    kind = "RNN" if layer.cell.startswith("rnn_") else layer.cell.upper()
    more = ", nonlinearity='relu'" if layer.cell == "rnn_relu" else ""
    if layer.projection_size:
        more = f", proj_size={layer.projection_size}"
    text = f"torch.nn.{kind}({size}, {layer.hidden_size}, batch_first=True{more})"
    names = {f"{name}_l0": f"{name}_l{k}" for name in _FIELDS}
    tensors = {
        ours: model.parameters[name] for ours, name in names.items() if name in model.parameters
    }
    return text, tensors, problems


_LAYERS: dict[type, Callable[[Model, int, Any, int], Any]] = {LayerSpec: _recurrent}


def _module(made: list[str], used: list[str], result: str, num_layers: int) -> str:
    """Write the module: x [B, T, I] or tokens [B, T], and the states of the steps before."""
    after = ", ".join(f"after{k}" for k in range(num_layers))
    lines = [
        "import torch",
        "",
        "",
        "class Net(torch.nn.Module):",
        "    def __init__(self):",
        "        super().__init__()",
        *(f"        {line}" for line in made),
        "",
        "    def forward(self, x, states=None):",
        f"        states = [None] * {num_layers} if states is None else states",
        *(f"        {line}" for line in used),
        f"        return {result}, [{after}]",
        "",
    ]
    return "\n".join(lines)


def _answers(
    text: str, tensors: dict[str, NDArray[np.float32]], model: Model, x: NDArray[Any]
) -> list[Answer]:
    """Run the module: [B, T, O] as a sequence, and step by step."""
    import torch

    names: dict[str, Any] = {}
    exec(text, names)  # written above, of numbers alone
    net = names["Net"]().eval()
    net.load_state_dict({name: torch.tensor(value) for name, value in tensors.items()})
    given = torch.tensor(x[..., 0] if model.spec.is_token else x)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what its fast kernels do not do
        sequence, _ = net(given)
        single, states = [], None
        for t in range(x.shape[1]):
            y, states = net(given[:, t : t + 1], states)
            single.append(y)
        steps = torch.cat(single, dim=1)
        return [("a sequence", sequence.numpy()), ("step by step", steps.numpy())]
