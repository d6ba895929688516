"""Train a model on a table, and run the table through it.

Run: python train_from_csv.py DIR
The table is made up: two machines, whose temperature follows their load with a delay.
"""

import csv
import sys
from pathlib import Path

import numpy as np

from streamrnn import Engine, Model
from streamrnn.training import TrainingConfig, train_to_file
from streamrnn.training.report import report_lines

directory = Path(sys.argv[1])
rng = np.random.default_rng(0)
with (directory / "machines.csv").open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["machine", "minute", "load", "temperature"])
    for machine in ("press", "saw"):
        load, temperature = 50.0, 20.0
        for minute in range(600):
            load = float(np.clip(load + rng.normal(0, 5), 0, 100))
            temperature += 0.1 * (20 + load**2 / 100 - temperature)  # no linear law
            writer.writerow([machine, minute, f"{load:.2f}", f"{temperature:.3f}"])

config = TrainingConfig(
    path=str(directory / "machines.csv"),
    predict=("temperature",),  # one row ahead, unless horizon says otherwise
    time="minute",
    group="machine",
    layers=("gru:16",),
)
result = train_to_file(config, directory / "machines.safetensors")
print(*report_lines(result.report), sep="\n")  # the errors, beside those of the baselines
engine = Engine(Model.load(directory / "machines.safetensors"))
[[y]] = engine.steps("press", [[60.0, 45.0]])  # load and temperature, as in the table
print(f"press, the next minute: {y:.1f} degrees")
