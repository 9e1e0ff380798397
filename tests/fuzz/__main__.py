"""The command `python -m tests.fuzz`: run a given number of inputs, divided evenly among the kinds."""

import argparse
import logging
import sys
import time
import traceback

from tests.fuzz import KINDS
from tests.fuzz.kind import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Random inputs.")
    parser.add_argument("--count", type=int, default=1000, help="inputs of all kinds together")
    parser.add_argument("--kinds", nargs="*", default=[], help="parts of names of kinds; all by default")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    kinds = [kind for kind in KINDS if not options.kinds or any(part in kind.name for part in options.kinds)]
    failed = 0
    logging.disable()  # readers would log thousands of warnings
    for kind in kinds:
        started = time.monotonic()
        try:
            outcomes = run(kind, -(-options.count // len(kinds)), options.seed)
        except BaseException:
            failed += 1
            print(f"{kind.name:<16} FAILED\n{traceback.format_exc()}", flush=True)
            continue
        told = ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.most_common())
        print(f"{kind.name:<16} {told}; {time.monotonic() - started:.0f} s", flush=True)
    print(f"{len(kinds) - failed} of {len(kinds)} kinds passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
