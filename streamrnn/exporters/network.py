"""What every exporter gives: bytes, the answers of the framework, and what its user must know."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import ModelError
from streamrnn.importers.original.trial import num_trial_steps, trial_inputs
from streamrnn.importers.proof import Proof, Recording, prove
from streamrnn.model.model import Model
from streamrnn.model.spec import ModelSpec

__all__ = [
    "Answer",
    "Answers",
    "Exported",
    "is_installed",
    "prove_export",
    "refuse",
    "refuse_origins",
]

NUM_STREAMS = 2
_MASKED_SHARE = 0.2
Answer = tuple[str, NDArray[Any]]  # how it was run, and its outputs [B, T, O]
# Inputs [B, T, I] to the outputs as a sequence where there is such a way, and step by step.
Answers = Callable[[NDArray[Any]], list[Answer]]


@dataclass(frozen=True)
class Exported:
    """A model as another framework has it."""

    data: bytes  # of the file
    framework: str  # the package that runs it
    answers: Answers  # imports that package
    lines: list[str] = field(default_factory=list)  # for the user
    text: str = ""  # to be printed: what the file does not hold


def refuse(target: str, problems: Iterable[str]) -> ModelError:
    """Word one refusal that lists everything."""
    listed = list(dict.fromkeys(problems))
    if len(listed) == 1:
        return ModelError(f"{target} cannot express this model: {listed[0]}")
    return ModelError(
        f"{target} cannot express this model:" + "".join(f"\n  - {item}" for item in listed)
    )


def refuse_origins(target: str, spec: ModelSpec) -> None:
    """Raise `ModelError` if values are to be shifted in float64, which float32 graphs cannot."""
    named = [f"input {item.name!r}" for item in spec.inputs if item.origin]
    named += [f"output {item.name!r}" for item in spec.outputs if item.origin]
    if named:
        raise refuse(target, [f"{name} has an origin (of float64)" for name in named])


def is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def prove_export(model: Model, exported: Exported, tolerance: float) -> list[Proof]:
    """Compare the framework's answers with the float64 reference and the engine.

    One proof for each way in which it is run: as a sequence, and step by step.
    """
    x = trial_inputs(model.spec, NUM_STREAMS, num_trial_steps(model))
    if model.spec.mask_value is not None:
        x[np.random.default_rng(1).random(x.shape[:2]) < _MASKED_SHARE] = model.spec.mask_value
    return [
        prove(
            model,
            Recording(x, y.astype(np.float64), y.dtype, f"{exported.framework}, {how}"),
            tolerance,
            advises=False,
        )
        for how, y in exported.answers(x)
    ]
