"""Run every benchmark, record it in results/, and write docs/benchmarks.md.

    python benchmarks/all.py [--repetitions N] [--only NAME ...]        (about 40 minutes on one quiet core)

Each benchmark runs in a process of its own, with its own number of repetitions unless N is given; the last, "course",
takes the time of every notebook in profile ci (those of profile cpu come from the executed notebooks themselves). One
that fails is said at the end, and the others are recorded all the same. Nothing else should run meanwhile.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import report

HERE = Path(__file__).resolve().parent
COURSE = [str(HERE.parent / "tools" / "notebooks.py"), "course", "--profile", "ci", "--save"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, help="calls of each arm that count; default: each its own")
    names = [*report.SECTIONS, "course"]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    options = parser.parse_args()
    failed = []
    for name in options.only:
        repeated = [] if options.repetitions is None else ["--repetitions", str(options.repetitions)]
        command = COURSE if name == "course" else [str(HERE / f"{name}.py"), *repeated, "--save"]
        print(f"--- {name}", flush=True)
        start = time.perf_counter()
        done = subprocess.run([sys.executable, *command], check=False)
        print(f"--- {name}: {time.perf_counter() - start:.0f} s, exit status {done.returncode}\n", flush=True)
        failed += [name] * (done.returncode != 0)
    report.main()
    if failed:
        print(f"failed, and not recorded: {', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
