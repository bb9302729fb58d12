"""`python -m tests.fuzz`: read damaged files until the time is over, and keep those that break
something.

Exit code: 0 if nothing broke, 1 otherwise. To run a kept file again:
python -m tests.fuzz.child MODULE TARGET FILE (the report has this line).
"""

import argparse
import sys
import time
from contextlib import suppress
from pathlib import Path

from .fuzzer import Fuzzer
from .targets import TARGETS


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Read damaged files, and keep what breaks."
    )
    add = parser.add_argument
    add("--seconds", type=float, default=60, metavar="N", help="time for all targets (60)")
    add("--seed", type=int, default=1, metavar="N", help="seed of the random numbers (1)")
    add("--timeout", type=float, default=10, metavar="N", help="seconds that a case may take (10)")
    add("--findings", type=Path, default=Path("out/fuzz"), metavar="DIR", help="(out/fuzz)")
    add("target", nargs="*", help=f"of {', '.join(TARGETS)}; all unless told")
    options = parser.parse_args(arguments)
    for name in options.target:
        if name not in TARGETS:
            parser.error(f"target is {name!r}; expected one of: {', '.join(TARGETS)}")
    names = options.target or list(TARGETS)
    end = time.monotonic() + options.seconds
    with Fuzzer(
        names, seed=options.seed, folder=options.findings, timeout=options.timeout
    ) as fuzzer:
        with suppress(KeyboardInterrupt):
            fuzzer.run(until=lambda: time.monotonic() > end)
        for line in fuzzer.report():
            print(line)
        return 1 if fuzzer.findings else 0


if __name__ == "__main__":
    sys.exit(main())
