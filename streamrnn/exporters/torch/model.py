"""Write a model as a PyTorch state dict, and the text of the module that loads it.

What ``torch.nn`` has modules for that take whole sequences is written with these (`chain`); every
other model as a module that computes step by step.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from streamrnn.errors import ModelError
from streamrnn.exporters.network import Answer, Exported, refuse, refuse_origins
from streamrnn.exporters.torch.cells import add_recurrent
from streamrnn.exporters.torch.chain import export_chain
from streamrnn.exporters.torch.inputs import add_features, add_head
from streamrnn.exporters.torch.layers import FRAME_LAYERS
from streamrnn.exporters.torch.module import Module
from streamrnn.exporters.walk import before_name, walk
from streamrnn.model.graph import Read
from streamrnn.model.model import Model
from streamrnn.model.spec import LayerSpec

__all__ = ["export_torch"]

_LAYERS = {**FRAME_LAYERS, LayerSpec: add_recurrent}


def export_torch(model: Model) -> Exported:
    """Write a model as a state dict.

    Raises `ModelError` with all that a module cannot express.
    """
    refuse_origins("PyTorch", model.spec)
    try:
        return export_chain(model)
    except ModelError:
        return _export_steps(model)


def _export_steps(model: Model) -> Exported:
    """Write a module that computes step by step."""
    spec, module = model.spec, Module(model, _LAYERS)
    levels = add_features(module)
    values = walk(spec, module, "x")
    last = len(spec.layers) - 1
    y, values[Read(last + 1)] = add_head(module, values[Read(last)], levels)
    for k in spec.graph.kept:
        module.give(before_name(spec, k), values[Read(k)])
    firsts = [_first_state(module, name) for name in module.parts]
    if module.problems:
        raise refuse("PyTorch", module.problems)
    text = _text(module, y, firsts)
    data = safetensors.numpy.save(
        {name: np.ascontiguousarray(value) for name, value in module.tensors.items()},
        metadata={"format": "pt"},
    )
    lines = [f"  {name:<20} {list(value.shape)}" for name, value in module.tensors.items()]
    lines.append(
        "note: the file holds the module's tensors, and the text below how they are joined"
    )
    return Exported(data, "torch", lambda x: _answers(text, module, x), lines, text)


def _first_state(module: Module, name: str) -> str:
    """Write a part of a new stream's state; numbers that were trained are tensors of the module."""
    first = module.parts[name].first
    sizes = ", ".join(map(str, first.shape))
    if np.isnan(first).all() and first.size:
        return f'"{name}": torch.full((streams, {sizes}), torch.nan)'
    if not first.any():
        return f'"{name}": torch.zeros(streams, {sizes})'
    return f'"{name}": {module.buffer(f"first_{name}", first)}.expand(streams, -1)'


def _text(module: Module, y: str, firsts: list[str]) -> str:
    """Write the module: x [B, T, I] or tokens [B, T], and the states of the steps before."""
    takes = "tokens [B, T]" if module.spec.is_token else f"[B, T, {module.spec.num_inputs}]"
    lines = [
        "import torch",
        "from torch.nn import functional as F",
        "",
        "",
        "class Net(torch.nn.Module):",
        f'    """{takes} to [B, T, {module.spec.output_size}], and what is kept."""',
        "",
        "    def __init__(self):",
        "        super().__init__()",
        *(f"        {line}" for line in module.made),
        "",
        "    def first_states(self, streams):",
        "        return {",
        *(f"            {line}," for line in firsts),
        "        }",
        "",
        "    def step(self, x, states):",
        "        after = {}",
        *(f"        {line}" for line in module.lines),
        f"        return {y}, after",
        "",
        "    def forward(self, x, states=None):",
        "        states = self.first_states(len(x)) if states is None else states",
        "        steps = []",
        "        for t in range(x.shape[1]):",
        "            y, states = self.step(x[:, t], states)",
        "            steps.append(y)",
        "        return torch.stack(steps, dim=1), states",
        "",
    ]
    return "\n".join(lines)


def _answers(text: str, module: Module, x: NDArray[Any]) -> list[Answer]:
    """Run the module: [B, T, O], the second half with the states that the first one left."""
    import torch

    names: dict[str, Any] = {}
    exec(text, names)  # written above, of numbers alone
    net = names["Net"]().eval()
    net.load_state_dict({name: torch.tensor(value) for name, value in module.tensors.items()})
    given = torch.tensor(x[..., 0] if module.spec.is_token else x)
    middle = math.ceil(x.shape[1] / 2)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what its fast kernels do not do
        first, states = net(given[:, :middle])
        second, _ = net(given[:, middle:], states)
    return [("step by step", torch.cat([first, second], dim=1).numpy())]
