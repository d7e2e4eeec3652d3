"""Measure what the project promises about its speed, and compare it with its peers.

Results go to results/bench/, with hardware and versions:

    python benchmarks/run.py            # every measurement
    python benchmarks/run.py NAME ...   # some of them
    python benchmarks/run.py --out benchmarks/results  # to be published
    python benchmarks/render.py         # write benchmarks/README.md

Every measurement runs in a process of its own. The last command makes tables and
pictures of the stored results.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import bits
import fields
import kernels
import lengths
import margins
import peers
import precision
import promises
import protocol
import scaling
import small
from measure import store

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
        scaling.stale_programs,
        protocol.linear_three,
        small.small,
        bits.bit_attacks,
        kernels.tangent_kernels,
        kernels.kernel_blocks,
        kernels.kernel_extremes,
        lengths.recurrent_networks,
        fields.mean_field,
        margins.margins,
    )
}


def main(arguments: list[str] | None = None) -> int:
    """Run measurements, each in a fresh process, and store them; returns the exit
    status.
    """
    parser = argparse.ArgumentParser(
        prog="sgfbias bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", help="measurements to run; default all of them")
    parser.add_argument(
        "--list", action="store_true", help="list the measurements and what they measure"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results/bench"),
        help="folder for the results, by default results/bench; the published results are in "
        "benchmarks/results",
    )
    parser.add_argument(
        "--here",
        action="store_true",
        help="run in this process, and print the results as JSON instead of storing them",
    )
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in MEASUREMENTS:
            parser.error(
                f"there is no measurement {name!r}; the measurements are {', '.join(MEASUREMENTS)}"
            )
    if options.list:
        for name in options.names or MEASUREMENTS:
            print(f"{name}\n    {' '.join(str(MEASUREMENTS[name].__doc__).split())}")
        return 0
    failed = []
    for name in options.names or MEASUREMENTS:
        if options.here:
            print(json.dumps(MEASUREMENTS[name]()))
            continue
        done = subprocess.run(
            [sys.executable, __file__, name, "--here"], stdout=subprocess.PIPE, text=True
        )
        if done.returncode:  # its error has been printed, and the others still run
            failed.append(name)
            print(f"the measurement {name} failed", file=sys.stderr)
            continue
        what = " ".join(str(MEASUREMENTS[name].__doc__).split())
        result = store(
            name, {"what": what, **json.loads(done.stdout.splitlines()[-1])}, options.out
        )
        print(
            json.dumps({key: result[key] for key in result if key not in ("stages", "versions")}),
            flush=True,
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
