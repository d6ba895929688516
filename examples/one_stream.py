"""Step one stream, lose the connection, go on.

Run: python one_stream.py [ADDRESS]
Needs the server of `make serve`: one model with one input (CO2 in ppmv).
"""

import sys

from streamrnn_client import Client

address = sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:7070"
readings = [371.1, 371.3, 371.5, 371.9, 372.4]

with Client(address) as client:
    stream = client.stream("example-one")
    for ppmv in readings[stream.last_seq : 3]:  # a stream that is known goes on where it stands
        [forecast] = stream.step([ppmv])
        print(f"step {stream.last_seq}: read {ppmv} ppmv, next week {forecast:.2f} ppmv")

# The client is gone; the stream's state is not.
with Client(address) as client:
    stream = client.stream("example-one")
    print(f"back again after step {stream.last_seq}")
    forecasts = stream.steps([[ppmv] for ppmv in readings[stream.last_seq :]])
    print("the rest as one chunk:", *(f"{forecast:.2f}" for [forecast] in forecasts))
    stream.close()  # forget the state; without it, it stays for the next run
