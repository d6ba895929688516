"""The losses of every evaluation as lines of JSON, for programs that watch a training."""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from streamrnn.errors import TrainingError
from streamrnn.training.fit.trainer import Evaluation
from streamrnn.training.search.trial import Trial

__all__ = ["EpochLog"]


class EpochLog:
    """A context manager, called after each evaluation; one that goes on writes them all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None
        if path.is_file() and not _is_log(path):
            raise TrainingError(
                f"{path} exists and is no log of a training; it is not overwritten: name another "
                "file"
            )

    def __enter__(self) -> EpochLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file:
            self._file.close()

    def __call__(self, evaluation: Evaluation) -> None:
        """Write losses, and what is remembered; what is not finite becomes null."""
        self._write(
            {
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in asdict(evaluation).items()
            }
        )

    def end_trial(self, number: int, trial: Trial) -> None:
        """Write the result of a trial of a search."""
        self._write({"ended": number} | trial.to_dict())

    def _write(self, facts: dict[str, Any]) -> None:
        try:
            if self._file is None:
                self._file = open(self.path, "w", encoding="utf-8")  # noqa: SIM115
            self._file.write(json.dumps(facts) + "\n")
            self._file.flush()
        except BrokenPipeError:  # its reader has gone; the training goes on
            if self._file:
                with suppress(OSError):
                    self._file.close()
            self._file = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise TrainingError(f"{self.path} cannot be written: {error.strerror}") from error


def _is_log(path: Path) -> bool:
    try:
        with open(path, encoding="utf-8") as file:
            first = file.readline(4096)
        return not first or bool({"epoch", "ended"} & set(json.loads(first)))
    except (OSError, ValueError, TypeError):
        return False
