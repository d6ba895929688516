"""The trials of a search that have ended, on disk, so that it goes on after a break."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamrnn.errors import ModelFileError, TrainingError
from streamrnn.model.tensor_file import replace_file

__all__ = ["TrialStore", "is_store"]

_KEY = "streamrnn.search"
_FORMAT = 1
_MAX_FILE_BYTES = 2**24


class TrialStore:
    """A file of JSON, replaced as a whole after every trial; without a path nothing is kept.

    ``identity`` is what decides how the search goes on; another one is refused.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, Any], resume: bool) -> None:
        self.path = path
        self.identity = json.loads(json.dumps(identity))
        self.plan: dict[str, Any] = {}
        self.trials: list[dict[str, Any]] = []
        self.saved = math.inf  # validation loss of the model that was saved when it was stopped
        if path is not None and resume and path.exists():
            self._restore(path)

    def keep(self, trials: list[dict[str, Any]]) -> None:
        """Write the trials, those before a break that are not asked for yet included."""
        self.trials = [*trials, *self.trials[len(trials) :]]
        self._write()

    def note_saved(self, loss: float) -> None:
        """Remember how good the model is that was saved before the search had ended."""
        self.saved = loss
        self._write()

    def _write(self) -> None:
        if self.path is None:
            return
        kept = {"format": _FORMAT, "identity": self.identity, "plan": self.plan}
        kept["saved"] = self.saved if math.isfinite(self.saved) else None
        text = json.dumps({_KEY: kept | {"trials": self.trials}}, allow_nan=False)
        try:
            replace_file(self.path, text.encode())
        except ModelFileError as error:
            raise TrainingError(str(error)) from error

    def remove(self) -> None:
        """Remove the file: the search has ended."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _restore(self, path: Path) -> None:
        from streamrnn.training.search.trial import Trial

        try:
            kept = _read(path)[_KEY]
            if kept["format"] != _FORMAT:
                raise ValueError(f"its format is not {_FORMAT}")
            identity, self.plan = dict(kept["identity"]), dict(kept["plan"])
            self.trials = [Trial.from_dict(each).to_dict() for each in kept["trials"]]
            self.saved = math.inf if kept["saved"] is None else float(kept["saved"])
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise TrainingError(f"{path} is damaged, or no search of this version: {error}") from (
                error
            )
        names = sorted({*identity, *self.identity})
        differing = [name for name in names if identity.get(name) != self.identity.get(name)]
        if differing:
            raise TrainingError(
                f"{path} is of another search: {', '.join(differing)} differ. Go on with what it "
                "was begun with, or remove the file to begin anew"
            )


def is_store(path: Path) -> bool:
    """Tell whether a file holds the trials of a search, damaged perhaps."""
    try:
        return _KEY in _read(path)
    except (OSError, ValueError, RecursionError, TypeError):
        return False


def _read(path: Path) -> Any:
    with open(path, "rb") as file:
        data = file.read(_MAX_FILE_BYTES + 1)
    if len(data) > _MAX_FILE_BYTES:
        raise ValueError(f"it is larger than {_MAX_FILE_BYTES} bytes")
    return json.loads(data)
