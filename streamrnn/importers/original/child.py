"""The process that runs an original: ``python -m streamrnn.importers.original.child``.

Standard input has what to run and with which inputs, standard output what came, both as ``.npz``.
A file of somebody else's may crash a framework, or ask it for all memory: here that ends nothing.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

Arrays = list[NDArray[Any]]


def read_arrays(file: BinaryIO) -> tuple[dict[str, Any], Arrays]:
    """Read what `write_arrays` wrote."""
    with np.load(file, allow_pickle=False) as found:
        facts = json.loads(found["facts"].tobytes())
        return facts, [found[f"a{k}"] for k in range(len(found.files) - 1)]


def write_arrays(file: BinaryIO, facts: dict[str, Any], arrays: Arrays) -> None:
    """Write facts and arrays."""
    named: dict[str, Any] = {f"a{k}": array for k, array in enumerate(arrays)}
    np.savez(file, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **named)


def _run_onnx(plan: dict[str, Any], inputs: Arrays) -> tuple[str, Arrays]:
    """Run each input's pieces one after the other; states go on where the plan has some."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        plan["path"], options, providers=["CPUExecutionProvider"]
    )
    results = []
    for pieces in inputs:
        others = {
            name: np.full(shape, value, kind)
            for name, (shape, kind, value) in plan["others"].items()
        }
        answers = []
        for piece in pieces:
            wanted = [*plan["outputs"], *plan["states"].values()]
            found = session.run(wanted, {plan["input"]: piece} | others)
            after = found[len(plan["outputs"]) :]
            answers.append(_side_by_side(found[: len(plan["outputs"])], plan["axis"]))
            if plan["carries"]:
                others |= dict(zip(plan["states"], after, strict=True))
        results.append(np.stack(answers))
    return f"onnxruntime {onnxruntime.__version__}", results


def _side_by_side(answers: Arrays, axis: int) -> NDArray[Any]:
    """Put outputs beside one another; one that has an axis less gives one number."""
    if len(answers) == 1:
        return answers[0]
    rank = max(answer.ndim for answer in answers)
    whole = [a if a.ndim == rank else np.expand_dims(a, axis) for a in answers]
    return np.concatenate(whole, axis=axis)


def _run_keras(plan: dict[str, Any], inputs: Arrays) -> tuple[str, Arrays]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    model = keras.saving.load_model(plan["path"], compile=False, safe_mode=True)
    results = []
    for pieces in inputs:
        for layer in model.layers:
            if getattr(layer, "stateful", False):
                layer.reset_state()
        results.append(np.stack([_keras_answer(keras, model, x) for x in pieces]))
    return f"keras {keras.__version__} on {keras.backend.backend()}", results


def _keras_answer(keras: Any, model: Any, x: NDArray[Any]) -> NDArray[Any]:
    """Run a model; several inputs, and several outputs, lie side by side."""
    given: Any = x
    if len(model.inputs) > 1:
        given = np.split(x, np.cumsum([each.shape[-1] for each in model.inputs])[:-1], axis=-1)
    answers = model(given)
    answers = answers if isinstance(answers, list | tuple) else [answers]
    return np.concatenate([keras.ops.convert_to_numpy(each) for each in answers], axis=-1)


def _limit_itself(seconds: int, memory: int) -> None:
    try:
        import resource
    except ImportError:  # no such limits on this system
        return
    for limit, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(limit)[1]
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (allowed, hard))


def _main() -> int:
    plan, inputs = read_arrays(sys.stdin.buffer)
    _limit_itself(plan["seconds"], plan["memory"])
    # What a framework prints must not get among the arrays.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        runner = {"onnx": _run_onnx, "keras": _run_keras}[plan["kind"]]
        name, results = runner(plan, inputs)
        facts = {"name": name}
    except Exception as error:  # whatever a framework raises
        facts, results = {"error": f"{type(error).__name__}: {error}"[:500]}, []
    write_arrays(out, facts, results)
    out.close()
    return 0


if __name__ == "__main__":
    sys.exit(_main())
