"""Print the results in files of ``streamrnn bench --json``, a short line each."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    """Print them."""
    for path in map(Path, sys.argv[1:]):
        print(f"\n{path.stem}")
        for line in path.read_text().splitlines():
            r = json.loads(line)
            numbers = f"{r['value']:12,.4g} {r['unit']:10} {r['ratio']:7.3f} of {r['reference']}"
            print(f"{numbers:52} {r['case']}")


if __name__ == "__main__":
    main()
