"""What a network remembers while it is trained: one batch of windows, gone back through.

The compiled layers run the windows; the way back is the one of `streamrnn.training.memory.fading`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from streamrnn.errors import TrainingError, counted
from streamrnn.gradients.node import Node
from streamrnn.reference.gates import LayerGates
from streamrnn.training.data.dataset import Dataset
from streamrnn.training.data.stacking import stack_rows
from streamrnn.training.memory.fading import Fading, layers_by_lag, plain_stack
from streamrnn.training.memory.rows import choose_rows
from streamrnn.training.memory.targets import TargetsOf
from streamrnn.training.memory.units import STUCK, measure_units
from streamrnn.training.network.losses import loss_and_gradient
from streamrnn.training.network.network import Network

__all__ = ["OFTEN", "SETTLED", "Probe", "probe_words"]

NUM_WINDOWS, MAX_STEPS = 16, 256
MAX_BYTES = 8 << 20  # of what the network keeps of all windows
NUM_CONSTANT_ROWS = 4096
NO_SKILL = 0.99  # of the constant's loss
OFTEN = 0.9  # of the updates: if so many are clipped, the rate is not what was set
SETTLED = 200  # updates; the first are clipped nearly always, for the loss is steep at the start

# A probe may take this share of the updates since the one before. What both take is estimated from
# sizes alone, for a clock would decide otherwise in every training: seconds as on one core.
SHARE = 0.02
_SECONDS_A_STEP, _SECONDS_A_PRODUCT = 1e-4, 1.5e-9  # of a probe: of a layer, of a window's weight
_SECONDS_AN_UPDATE, _SECONDS_A_WEIGHT = 3e-4, 2e-10  # of an update: of a row's weight


class Probe:
    """One loss step a window, over windows of the training part; nothing that trains is touched."""

    def __init__(self, network: Network, dataset: Dataset, truncation_steps: int) -> None:
        self._network, self._dataset = network, dataset
        self._truncation_steps = truncation_steps
        most = min(truncation_steps, MAX_STEPS)
        step_bytes = sum(node.bytes_a_step for node in network.nodes)
        num_windows = max(1, min(NUM_WINDOWS, MAX_BYTES // (most * step_bytes)))
        rows = choose_rows(dataset, "train", num_windows, most - 1)
        self._num_steps, self._num_windows = rows.history + 1, len(rows.rows)
        places = zip(rows.streams.tolist(), rows.rows.tolist(), strict=True)
        cut = [(k, row - rows.history, row + 1) for k, row in places]
        if cut:
            self._chunk, target = stack_rows(dataset.streams, cut)
            self._target = target[-1:].copy()
        self._constant = _constant_loss(dataset)

    def is_due(self, number: int, num_updates: int, batch_size: int) -> bool:
        """Tell whether the evaluation of this number is one of those with a probe.

        ``num_updates`` are those since the last one. It is at the evaluations 1, 2, 4, 8, ... and
        whenever it costs little.
        """
        network, steps = self._network, self._num_steps
        num_layers, num_weights = max(len(network.nodes) - 1, 1), network.flat.size
        products = steps * self._num_windows * num_weights
        own = _SECONDS_A_STEP * num_layers * steps + _SECONDS_A_PRODUCT * products
        weights = batch_size * self._truncation_steps * num_weights
        updates = num_updates * (_SECONDS_AN_UPDATE + _SECONDS_A_WEIGHT * weights)
        return not number & (number - 1) or own <= SHARE * updates

    def __call__(
        self, validation: float, clipped: float, num_updates: int
    ) -> dict[str, Any] | None:
        """Measure the network as it is, whose loss and share of clipped updates are given.

        ``num_updates`` are those so far.

        Returns JSON types: ``layers`` and the rest as of `Fading.to_dict` (no layers where they are
        no plain stack), ``units`` by layer, ``share_of_constant``, the validation loss as a share
        of a constant's (None: not known), and what this ``says``. None if there is no window, or a
        number is not finite.
        """
        if not self._num_windows:
            return None
        network, dataset = self._network, self._dataset
        state = network.initial_state(self._num_windows)
        z, _ = network.forward(self._chunk, state)
        try:
            _, grad = loss_and_gradient(
                dataset.loss, network.activation, z[-1:], self._target, dataset.loss_settings
            )
        except TrainingError:  # not finite: the training says so itself
            return None
        grad_z = np.asarray(grad[0], np.float64) * np.count_nonzero(~np.isnan(self._target))
        found = _gates(network.nodes)
        is_plain = plain_stack(network.spec)
        layers = layers_by_lag(network.parameters, found, grad_z) if is_plain else ()
        if not all(np.isfinite(each.by_h).all() for each in layers):
            return None
        about = Fading(layers, self._num_steps, self._num_windows, self._truncation_steps)
        is_known = self._constant and math.isfinite(validation)
        share = validation / self._constant if is_known else None
        units = [_unit_counts(each) for each in found]
        memory = about.to_dict() | {"units": units, "share_of_constant": share}
        return memory | {"says": probe_words(memory, clipped, num_updates)}


def _gates(nodes: Sequence[Node]) -> list[LayerGates]:
    from streamrnn.gradients.recurrent import Recurrent  # loads Numba

    found = []
    for k, node in enumerate(nodes):
        if isinstance(node, Recurrent):
            found.append(LayerGates(k, node.cell, *node.kept()))
    return found


def _unit_counts(found: LayerGates) -> dict[str, Any]:
    """Count the units whose gates are stuck, and those that are dead."""
    units = measure_units(found)
    stuck = {name: int((share >= STUCK).sum()) for name, share in units.saturated.items()}
    return {
        "layer": units.layer,
        "cell": units.cell,
        "num_units": len(units.dead),
        "stuck": stuck,
        "dead": int(units.dead.sum()),
    }


def _constant_loss(dataset: Dataset) -> float:
    """Return the validation loss of the best constant, in network units; 0: it is not known."""
    rows = choose_rows(dataset, "validation", NUM_CONSTANT_ROWS, 0)
    if not len(rows.rows) or dataset.loss_settings.class_weights:
        return 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # targets that overflowed
        loss = TargetsOf(dataset, rows).of_constant()
    return loss if math.isfinite(loss) else 0.0


def probe_words(memory: dict[str, Any], clipped: float, num_updates: int) -> str:
    """Say in words what a probe found, and how many of the updates before it were clipped."""
    words = []
    share, layers = memory["share_of_constant"], memory["layers"]
    if share is not None and share >= NO_SKILL:
        words.append("no skill yet: memory figures mean nothing")
    if layers and not any(each[by].get("0") for each in layers for by in ("by_h", "by_c")):
        words.append("gradients reach no layer")
    elif layers:
        steps = memory["num_steps"]
        reach = max(each["reach"] for each in layers) + 1
        is_cut = reach == steps == memory["truncation_steps"]
        cut = ", cut by the truncation" if is_cut else ""
        words.append(f"gradients reach {reach} of {counted(steps, 'step')}{cut}")
    if clipped >= OFTEN:
        advice = ": lower the rate" * (num_updates >= SETTLED)
        words.append(f"clipped in {clipped:.0%} of the updates{advice}")
    num_units = sum(each["num_units"] for each in memory["units"])
    stuck = sum(sum(each["stuck"].values()) for each in memory["units"])
    dead = sum(each["dead"] for each in memory["units"])
    if stuck:
        words.append(f"{counted(stuck, 'gate')} stuck")
    if dead:
        words.append(f"{dead} of {counted(num_units, 'unit')} dead")
    return "; ".join(words)
