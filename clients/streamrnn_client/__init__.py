"""The client of StreamRNN: recurrent networks served one time step at a time.

Public names are resolved when they are first used.
"""

from __future__ import annotations
