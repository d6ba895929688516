"""Run an original with its framework, and record what it answers."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import ModelError
from streamrnn.importers.network import GraphOptions, ImportedModel, note_on_first_state
from streamrnn.importers.original import child
from streamrnn.importers.original.keras import plan_keras
from streamrnn.importers.original.onnx import plan_onnx
from streamrnn.importers.original.plan import NotRun, Plan
from streamrnn.importers.proof import Recording

__all__ = ["record_original"]

_SECONDS = 120  # for the child on a busy machine
_CPU_SECONDS = 60
_MEMORY_BYTES = 4 << 30  # a framework alone takes one
_LEFT_OUT = note_on_first_state("").partition("first state")[0]
_PLANS = {"ONNX": ("onnxruntime", plan_onnx), "Keras": ("keras", plan_keras)}


def record_original(
    path: str, imported: ImportedModel, options: GraphOptions | None = None
) -> tuple[list[Recording], str]:
    """Run the file that a model was imported from.

    Parameters
    ----------
    path : str
        The file.
    imported : ImportedModel
        What was made of it.
    options : GraphOptions or None
        What the graph leaves open, as it was imported.

    Returns
    -------
    recordings : list of Recording
        None if it was not run.
    reason : str
        Why it was not run; empty where no framework could run such a file.
    """
    package, make_plan = _PLANS.get(imported.source.split()[0], ("", None))
    if make_plan is None:
        return [], ""
    if any(note.startswith(_LEFT_OUT) for note in imported.notes):
        return [], "the original was not run: its first state was left out"
    if importlib.util.find_spec(package) is None:
        return [], f"{package} is not installed, so the original was not run"
    try:
        plan = make_plan(path, imported.model, options)
        name, answers = _answers(plan)
        return [plan.recording(name, k, answer) for k, answer in enumerate(answers)], ""
    except NotRun as reason:
        return [], f"the original was not run: {reason}"
    except ModelError as error:
        return [], f"the original was not run: {error}"


def _answers(plan: Plan) -> tuple[str, list[NDArray[Any]]]:
    limits = {"seconds": _CPU_SECONDS, "memory": _MEMORY_BYTES}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as result:
        child.write_arrays(given, plan.facts | limits, plan.inputs)
        given.seek(0)
        try:
            done = subprocess.run(
                [sys.executable, "-m", child.__name__],
                stdin=given,
                stdout=result,
                stderr=subprocess.DEVNULL,
                env=environment,
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise NotRun("running it never ends") from error
        if done.returncode != 0:
            raise NotRun(f"the framework crashed (code {done.returncode})")
        result.seek(0)
        try:
            facts, answers = child.read_arrays(result)
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise NotRun("the framework crashed") from error
    if "error" in facts:
        raise NotRun(f"the framework says {' '.join(facts['error'].split())}")
    if len(answers) != len(plan.inputs) or any(a.dtype.kind != "f" for a in answers):
        raise NotRun("the framework answers no numbers")
    return str(facts["name"]), [np.asarray(answer) for answer in answers]
