"""All that changes while a network is trained, and its updates up to an evaluation.

The state is carried from chunk to chunk and from segment to segment: a segment starts from the
state that the segment before it ended with one epoch earlier, which is stale by one epoch's updates
but of the right place in the stream.

The weights that are validated, and kept, are a moving average (Polyak and Juditsky 1992).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from streamrnn.training.data.dataset import Dataset
from streamrnn.training.evaluate import PartLoss
from streamrnn.training.fit.augment.dropout import add_dropout
from streamrnn.training.fit.augment.noise import add_noise
from streamrnn.training.fit.augment.restarts import restart_some
from streamrnn.training.fit.augment.unseen_categories import silence_unseen
from streamrnn.training.fit.chunks import Piece, choose_sizes, cut_segments, plan_epoch
from streamrnn.training.fit.optimisers import clip_by_global_norm, make_optimiser
from streamrnn.training.fit.schedule import learning_rate
from streamrnn.training.fit.start import starting_weights
from streamrnn.training.memory.probe import Probe
from streamrnn.training.network.layers import Array, State
from streamrnn.training.network.network import Network, flat_views, initial_parameters

__all__ = ["Counts", "Evaluation", "Trainer"]


@dataclass(frozen=True)
class Evaluation:
    """Losses in network units, for a progress display."""

    epoch: float  # passes over the training part so far
    num_epochs: float  # at most, or about as many as the updates take
    train: float  # mean over the targets since the evaluation before, while the weights changed
    validation: float  # of the validation part, now
    best: float  # smallest `validation` so far
    learning_rate: float = 0.0  # of the last update
    num_updates: int = 0  # since the training began
    max_updates: int = 0  # 0: the epochs are the bound
    seconds: float = field(default=0.0, compare=False)  # of training, since it began
    trial: int = 0  # of a search, from 1; 0: there is none
    clipped: float = 0.0  # share of the updates since the evaluation before
    memory: dict[str, Any] | None = None  # what a `Probe` of these weights gave, if one was made

    def times(self, unit: float) -> Evaluation:
        """Return it with its losses in other units."""
        losses = {name: getattr(self, name) * unit for name in ("train", "validation", "best")}
        return replace(self, **losses)


@dataclass
class Counts:
    """What is counted and added up on the way."""

    num_epochs: int = 0  # that have ended
    num_pieces: int = 0  # of the current epoch that are done
    loss_sum: float = 0.0  # since the last evaluation
    num_targets: int = 0  # since the last evaluation
    num_updates: int = 0
    num_clipped: int = 0
    num_clipped_before: int = 0  # the last evaluation
    max_norm: float = 0.0  # of a gradient, before clipping
    learning_rate: float = 0.0  # of the last update
    best_evaluation: int = 0  # from 1; 0: none has had a finite error
    seconds: float = 0.0


class Trainer:
    """Weights, optimiser, average and carried states."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset, config = dataset, dataset.config
        self.rng = np.random.default_rng(config.seed)
        self.sizes = choose_sizes(dataset)
        self.segments = cut_segments(dataset.streams, self.sizes.segment_steps)
        start = config.initialisation, config.forget_bias, config.chrono_steps
        drawn = initial_parameters(dataset.spec, self.rng, *start)
        self.network = Network(dataset.spec, drawn)
        silence_unseen(self.network, dataset)
        if config.start_from:
            for name, value in starting_weights(config.start_from, dataset.spec).items():
                self.network.parameters[name][:] = value
        size, dtype = self.network.flat.size, self.network.dtype
        self.optimiser = make_optimiser(config.optimiser, config.momentum, size, dtype)
        self.average, self.best = self.network.flat.copy(), self.network.flat.copy()
        self.decay: Array | float = 0.0
        if config.weight_decay:
            self.decay, views = flat_views(dataset.spec, self.network.dtype)
            for name, view in views.items():
                view[...] = 0.0 if "bias" in name else config.weight_decay
        # One more than there are segments: index -1 is the state of a new stream, never written.
        self.ends = self.network.initial_state(len(self.segments) + 1)
        self.state: list[State] = []  # of the rows of the current batch
        self.validation = PartLoss(self.network, dataset, "validation")
        self.probe = Probe(self.network, dataset, self.sizes.truncation_steps)
        self.counts = Counts()
        self.history: list[Evaluation] = []
        self.begin_epoch()

    @property
    def past(self) -> list[Evaluation]:
        """Evaluations that the schedule goes by."""
        return self.history

    @property
    def epoch(self) -> float:
        """Passes over the training part that are done."""
        return self.counts.num_epochs + self.counts.num_pieces / len(self.plan)

    @property
    def progress(self) -> float:
        """The share of the training that is done, if patience does not end it."""
        sizes = self.sizes
        of_updates = self.counts.num_updates / sizes.updates if sizes.updates else 0.0
        return max(of_updates, self.epoch / sizes.epochs if sizes.epochs else 0.0)

    @property
    def is_finished(self) -> bool:
        """Whether there is no update left, or none that patience allows."""
        without_better = len(self.history) - self.counts.best_evaluation
        return self.progress >= 1.0 or without_better >= self.sizes.patience

    def begin_epoch(self) -> None:
        """Plan the next epoch; what is random about it is drawn here."""
        self.rng_before = self.rng.bit_generator.state
        self.state = []
        self.plan = plan_epoch(
            self.segments, self.sizes.truncation_steps, self.sizes.batch_size, self.rng
        )

    def run(self, should_stop: Callable[[], bool]) -> bool:
        """Make updates until one is validated; tell whether it came to that."""
        counts = self.counts
        started_s = time.monotonic() - counts.seconds
        while True:
            self.train(self.plan[counts.num_pieces])
            counts.num_pieces += 1
            if counts.num_pieces == len(self.plan):
                counts.num_epochs, counts.num_pieces = counts.num_epochs + 1, 0
                self.begin_epoch()
            is_due = self._is_due()
            if is_due:
                self._evaluate(started_s)
            counts.seconds = time.monotonic() - started_s
            if is_due or should_stop():
                return is_due

    def _is_due(self) -> bool:
        """Tell whether the weights are to be validated now."""
        if not self.sizes.updates and self.counts.num_pieces:
            return False
        last = self.history[-1].num_updates if self.history else 0
        since = self.counts.num_updates - last
        return since >= self.sizes.evaluate_every or self.progress >= 1.0

    def train(self, piece: Piece) -> None:
        """Go through one piece: forward, and with targets backward too."""
        if piece.start == 0:
            before = [self.segments[k].before for k in piece.rows]
            self.state = [tuple(s[before] for s in layer) for layer in self.ends]
        seed, num_updates = self.dataset.config.seed, self.counts.num_updates
        restart_some(self.state, piece, self.segments, seed, num_updates)
        chunk, target = piece.stacked(self.dataset, self.segments)
        add_noise(chunk, self.dataset, self.counts.num_updates)
        num_targets = int(np.count_nonzero(~np.isnan(target)))
        if num_targets:
            add_dropout(chunk, self.network, self.dataset.config, self.counts.num_updates)
            loss, self.state = self.network.loss(
                chunk, target, self.state, self.dataset.config.loss, self.dataset.loss_settings
            )
            self.counts.loss_sum += loss * num_targets
            self.counts.num_targets += num_targets
            self._update()
        else:
            self.state = self.network.advance(chunk, self.state)
        if piece.is_last:
            for layer, after in zip(self.ends, self.state, strict=True):
                for end, new in zip(layer, after, strict=True):
                    end[piece.rows] = new

    def _update(self) -> None:
        """Change the weights by the gradient that the network holds."""
        from streamrnn.gradients.update import move_average  # loads Numba

        config, network, counts = self.dataset.config, self.network, self.counts
        norm, clipped = clip_by_global_norm(network.gradient, config.clip_norm)
        counts.num_clipped += clipped
        counts.max_norm = max(counts.max_norm, norm)
        losses = [each.validation for each in self.past if each.num_updates <= counts.num_updates]
        counts.learning_rate = learning_rate(config, self.progress, losses)
        self.optimiser.update(network.flat, network.gradient, counts.learning_rate, self.decay)
        counts.num_updates = self.optimiser.num_updates
        # At first the average is that of all weights so far, so that it forgets the start.
        weight = max(1.0 - config.averaging, 1.0 / (1.0 + counts.num_updates / 10.0))
        move_average(self.average, network.flat, np.float32(weight))

    def _evaluate(self, started_s: float) -> None:
        """Validate the average, and keep it if it is the best."""
        counts, own = self.counts, self.network.flat.copy()
        self.network.flat[:] = self.average
        loss = self.validation.now()
        last = self.history[-1].num_updates if self.history else 0
        clipped = counts.num_clipped - counts.num_clipped_before
        clipped_share = clipped / max(counts.num_updates - last, 1)
        memory = self.probe(loss, clipped_share, counts.num_updates) if self._is_probed() else None
        self.network.flat[:] = own
        best_loss = self.history[-1].best if self.history else np.inf
        if loss < best_loss:
            best_loss, self.best[:] = loss, self.average
            counts.best_evaluation = len(self.history) + 1
        self.history.append(
            Evaluation(
                self.epoch,
                self.sizes.num_epochs,
                counts.loss_sum / max(counts.num_targets, 1),
                loss,
                best_loss,
                counts.learning_rate,
                counts.num_updates,
                self.sizes.updates,
                time.monotonic() - started_s,
                clipped=clipped_share,
                memory=memory,
            )
        )
        counts.num_targets, counts.loss_sum = 0, 0.0
        counts.num_clipped_before = counts.num_clipped

    def _is_probed(self) -> bool:
        last = max((each.num_updates for each in self.history if each.memory), default=0)
        since = self.counts.num_updates - last
        return self.probe.is_due(len(self.history) + 1, since, self.sizes.batch_size)
