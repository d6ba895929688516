"""``python -m tests.fuzz``: attack a server in every scenario, and say what came of it."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.campaign import SCENARIOS, attack


def main() -> int:
    """Attack; return 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    names = [each.name for each in SCENARIOS]
    parser.add_argument("--messages", type=int, default=10_000_000, help="of all scenarios")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**31)
    parser.add_argument("--scenario", action="append", choices=names, help="all, if none is named")
    args = parser.parse_args()
    chosen = [each for each in SCENARIOS if each.name in (args.scenario or names)]
    print(f"seed {args.seed}", flush=True)
    is_good = True
    for number, scenario in enumerate(chosen):
        with tempfile.TemporaryDirectory() as directory:
            num_messages = args.messages // len(chosen)
            found = attack(scenario, Path(directory), num_messages, args.seed + number)
        print(found.line, flush=True)
        print(f"    victim {found.victim}", flush=True)
        print(f"    answers {found.replies}", flush=True)
        is_good &= not found.faults
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
