"""Run every benchmark, record it in results/, and write docs/benchmarks.md.

    python benchmarks/all.py [--repetitions N] [--only NAME ...]        (about 30 minutes on one quiet core)

Each benchmark runs in a process of its own, with its own number of repetitions unless N is given. One that fails is
said at the end, and the others are recorded all the same. Nothing else should run meanwhile.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import report

HERE = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, help="calls of each arm that count; default: each its own")
    parser.add_argument("--only", nargs="+", choices=report.SECTIONS, default=list(report.SECTIONS))
    options = parser.parse_args()
    failed = []
    for name in options.only:
        arguments = ["--save"]
        if options.repetitions is not None:
            arguments = ["--repetitions", str(options.repetitions), "--save"]
        print(f"--- {name}", flush=True)
        start = time.perf_counter()
        done = subprocess.run([sys.executable, str(HERE / f"{name}.py"), *arguments], check=False)
        print(f"--- {name}: {time.perf_counter() - start:.0f} s, exit status {done.returncode}\n", flush=True)
        failed += [name] * (done.returncode != 0)
    report.main()
    if failed:
        print(f"failed, and not recorded: {', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
