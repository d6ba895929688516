"""Progress of a training on stderr: a bar on a terminal, else a few plain lines."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from streamrnn.training.fit.trainer import Epoch

__all__ = ["TrainingProgress"]

NUM_LINES = 10


class _Console(Console):
    """A console whose reader may go away: the training goes on without it."""

    def on_broken_pipe(self) -> None:
        """Write nothing any more; rich would end the program."""
        self.quiet = True


class TrainingProgress:
    """Progress display: a context manager, called after each epoch."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or _Console(file=sys.stderr)
        self.bar: Progress | None = None

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

    def __call__(self, epoch: Epoch) -> None:
        """Show an epoch that has just ended."""
        text = (
            f"epoch {epoch.epoch}/{epoch.num_epochs}  loss: train {epoch.train:.4g}, "
            f"validation {epoch.validation:.4g}, best {epoch.best:.4g}"
        )
        if self.bar:
            self.bar.update(self.task, completed=epoch.epoch, total=epoch.num_epochs, text=text)
        elif epoch.epoch == 1 or epoch.epoch % max(1, epoch.num_epochs // NUM_LINES) == 0:
            try:
                self.console.print(text, highlight=False, soft_wrap=True)
            except OSError:  # a full disk, say
                self.console.quiet = True
