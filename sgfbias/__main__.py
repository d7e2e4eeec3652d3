"""`python -m sgfbias`."""

import sys

from sgfbias.cli import main

if __name__ == "__main__":
    sys.exit(main())
