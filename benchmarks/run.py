"""Measure what the project promises and how it stands beside its peers; results go to benchmarks/results/ with hardware and versions.

python benchmarks/run.py            # every measurement, each in a process of its own
python benchmarks/run.py NAME ...   # some of them
python benchmarks/render.py         # tables and pictures of what is stored, in benchmarks/README.md
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import peers
import precision
import promises
import protocol
import scaling
from measure import RESULTS, store

MEASUREMENTS = {
    f.__name__: f
    for f in (
        promises.main_job,
        promises.landed,
        promises.against_scan,
        promises.flow_step,
        promises.gradients,
        promises.sweep,
        promises.import_time,
        peers.step_cost,
        precision.strong_error,
        precision.weak_error,
        precision.landed_answer,
        scaling.scaling,
        scaling.compile_time,
        scaling.random_numbers,
        protocol.linear_three,
    )
}


def main(arguments: list[str] | None = None) -> int:
    """Run measurements, each in a fresh process, and store them; the exit status."""
    parser = argparse.ArgumentParser(prog="sgfbias bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="which; all if none is named")
    parser.add_argument("--list", action="store_true", help="say what each measures")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--here", action="store_true", help="in this process, printed as JSON")
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in MEASUREMENTS:
            parser.error(f"there is no measurement {name!r}; there are {', '.join(MEASUREMENTS)}")
    if options.list:
        for name in options.names or MEASUREMENTS:
            print(f"{name}\n    {' '.join(str(MEASUREMENTS[name].__doc__).split())}")
        return 0
    failed = []
    for name in options.names or MEASUREMENTS:
        if options.here:
            print(json.dumps(MEASUREMENTS[name]()))
            continue
        done = subprocess.run([sys.executable, __file__, name, "--here"], stdout=subprocess.PIPE, text=True)
        if done.returncode:  # its own error is on the screen; the others still run
            failed.append(name)
            print(f"{name}: failed", file=sys.stderr)
            continue
        what = " ".join(str(MEASUREMENTS[name].__doc__).split())
        result = store(name, {"what": what, **json.loads(done.stdout.splitlines()[-1])}, options.out)
        print(json.dumps({key: result[key] for key in result if key not in ("stages", "versions")}), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
