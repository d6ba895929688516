"""Run a model in your own process, with no server.

Run: python engine_in_process.py MODEL
MODEL: a weight file with one input, such as build/demo/co2.safetensors.
"""

import sys

import numpy as np

from streamrnn import Engine, Model

model = Model.load(sys.argv[1])
engine = Engine(model)
print(f"inputs {[i.name for i in model.spec.inputs]}, {model.spec.output_size} output")

# One step of each stream, by name; an unknown stream starts from the initial state.
y = engine.step({"a": [371.1], "b": [365.0]})
print({name: float(value[0].round(2)) for name, value in y.items()})

# Many steps of one stream.
print(engine.steps("a", [[371.3], [371.5]]).round(2))

# The fast form: names are resolved once, X is float32[B, num_inputs].
rows = engine.rows(["a", "b"])
print(engine.batch(rows, np.array([[371.4], [365.2]], np.float32)).round(2))

# A stream's state is bytes: keep it, move it, start another stream from it.
record = engine.export_state("a")
engine.import_state("copy of a", record)
same = engine.step({"a": [371.6], "copy of a": [371.6]})
print(f"{len(record)} bytes; equal: {np.array_equal(same['a'], same['copy of a'])}")
