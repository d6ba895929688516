"""Let a served model of text write: the state stays in the server.

Run: streamrnn train book.txt --tokens char -o book.safetensors
     streamrnn serve book.safetensors
     python sample_text.py tcp://127.0.0.1:7070
"""

import sys

from streamrnn_client import Client

with Client(sys.argv[1]) as client:
    stream = client.stream("writer", model="book")
    for piece in stream.sample("The cat", 60, temperature=0.8, top_p=0.95, seed=1):
        print(piece, end="", flush=True)
    print()

    # What the model expects after a text of ours: one row of probabilities for each token.
    y = stream.steps(" on the ")[-1]
    best = y.argsort()[::-1][:3]
    print("then", ", ".join(f"{stream.model.decode(k)!r} {y[k]:.0%}" for k in best))
    stream.close()
