"""Progress of a training on stderr: a bar on a terminal, else a few plain lines."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from streamrnn.errors import counted
from streamrnn.training.fit.trainer import Evaluation
from streamrnn.training.search.trial import Trial

__all__ = ["TrainingProgress"]

NUM_LINES = 10


class _Console(Console):
    """A console whose reader may go away: the training goes on without it."""

    def on_broken_pipe(self) -> None:
        """Write nothing any more; rich would end the program."""
        self.quiet = True


class TrainingProgress:
    """Progress display: a context manager, called after each evaluation."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or _Console(file=sys.stderr)
        self.bar: Progress | None = None
        self.next_line = 0  # of `NUM_LINES`
        self.words = ""  # of the last probe

    def __enter__(self) -> TrainingProgress:
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("training"),
                BarColumn(),
                TextColumn("{task.fields[text]}"),
                TimeElapsedColumn(),
                console=self.console,
            )
            self.task = self.bar.add_task("training", total=None, text="reading the data")
            self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar:
            self.bar.stop()

    def __call__(self, evaluation: Evaluation) -> None:
        """Show how far the training is."""
        done, most, unit = evaluation.epoch, evaluation.num_epochs, "epoch"
        if evaluation.max_updates:
            done, most, unit = evaluation.num_updates, evaluation.max_updates, "update"
        trial = f"trial {evaluation.trial}  " if evaluation.trial else ""
        text = (
            f"{trial}{unit} {done:g}/{most:g}  loss: train {evaluation.train:.4g}, "
            f"validation {evaluation.validation:.4g}, best {evaluation.best:.4g}"
        )
        words = evaluation.memory["says"] if evaluation.memory else ""
        if self.bar:
            self.bar.update(self.task, completed=done, total=most, text=text)
        elif not evaluation.trial and done >= self.next_line * most / NUM_LINES:
            self.next_line = int(done * NUM_LINES / most) + 1
            self._print(text)
        is_told = bool(self.bar) or not evaluation.trial
        if is_told and words and words != self.words:
            self._print(f"after {done:g} {unit}{'s' * (done != 1)}: {words}")
        self.words = words or self.words

    def end_trial(self, number: int, trial: Trial) -> None:
        """Show the result of a trial of a search."""
        told = trial.settings
        self._print(
            f"trial {number}: {'+'.join(told.layers)}, learning rate {told.learning_rate:g}, "
            f"{counted(told.lags, 'lag')}, seed {told.seed}: loss {trial.loss:.4g} after "
            f"{counted(trial.best_update, 'update')}"
        )

    def _print(self, text: str) -> None:
        try:
            self.console.print(text, highlight=False, soft_wrap=True)
        except OSError:  # a full disk, say
            self.console.quiet = True
