"""Serve several sources at once from one event loop.

Run: python asyncio_client.py [ADDRESS]
Needs the server of `make serve`: one model with one input (CO2 in ppmv).
"""

import asyncio
import sys

from streamrnn_client import aio

address = sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:7070"


async def follow(client: aio.Client, name: str, first_ppmv: float) -> None:
    """Read a source and print what the network expects next."""
    stream = await client.stream(name)
    for step in range(3):
        ppmv = first_ppmv + 0.2 * step
        [forecast] = await stream.step([ppmv])
        print(f"{name}: read {ppmv:.1f}, next {forecast:.2f}")
    await stream.close()


async def main() -> None:
    """Follow three sources; their steps travel over one connection."""
    async with aio.Client(address) as client:
        names = {"north": 371.1, "south": 368.4, "ship": 366.0}
        await asyncio.gather(*(follow(client, name, ppmv) for name, ppmv in names.items()))


asyncio.run(main())
