"""Step many streams with one message a step.

Run: python many_streams.py [ADDRESS]
Needs the server of `make serve`: one model with one input (CO2 in ppmv).
"""

import sys
import time

import numpy as np

from streamrnn_client import Client

NUM_STREAMS, NUM_STEPS = 1000, 50

address = sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:7070"
ids = [f"sensor-{k}" for k in range(NUM_STREAMS)]
rng = np.random.default_rng(0)
x = 370 + np.cumsum(rng.normal(0, 0.3, (NUM_STEPS, NUM_STREAMS, 1)), axis=0, dtype=np.float32)

with Client(address) as client:
    rows = client.rows(ids)  # opens all of them with one request
    started = time.perf_counter()
    for step in x:
        y = client.batch(rows, step)  # float32[1000, 1]
    elapsed_s = time.perf_counter() - started
    print(f"{NUM_STREAMS * NUM_STEPS / elapsed_s:,.0f} steps/s; last outputs {y[:3, 0].round(2)}")

    # By name, for streams that come and go: those not seen before are opened.
    outputs = client.step_many({"sensor-7": [371.5], "sensor-new": [365.2]})
    for name, [output] in outputs.items():
        print(f"{name}: {output:.2f}")

    for stream in client.streams([*ids, "sensor-new"]):
        stream.close()
