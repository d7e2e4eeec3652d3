"""`sgfbias bench`: runs the benchmarks.

They lie beside the package in a checkout, and inside the package when it is installed.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class BenchCommand:
    """Measure the speed next to other libraries, and whether it reaches its targets."""

    arguments: list[str]

    def run(self) -> int:
        """Run the benchmarks, and return their exit status.

        **Raises:** `ValueError` if the benchmarks are not installed.
        """
        package = Path(__file__).parent.parent
        places = (package.parent / "benchmarks", package / "_benchmarks")
        folder = next((place for place in places if (place / "run.py").is_file()), None)
        if folder is None:
            raise ValueError(
                "the benchmarks were not installed with this package; run `sgfbias bench` in a "
                "checkout of the repository"
            )
        sys.path.insert(0, str(folder))
        import run

        return run.main(self.arguments)


def parse(arguments: list[str]) -> BenchCommand:
    """Pass the arguments on unchanged: the benchmarks have their own command line."""
    return BenchCommand(arguments)
