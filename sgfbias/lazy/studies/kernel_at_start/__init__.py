"""Does a deep ReLU network start as the closed forms of infinite width say, and does
the least eigenvalue of its kernel predict how long training takes?
"""

from sgfbias.lazy.studies.kernel_at_start.claims import claims as claims
from sgfbias.lazy.studies.kernel_at_start.config import DISTANCES as DISTANCES
from sgfbias.lazy.studies.kernel_at_start.config import NARROW as NARROW
from sgfbias.lazy.studies.kernel_at_start.config import QUICK as QUICK
from sgfbias.lazy.studies.kernel_at_start.config import Config as Config
from sgfbias.lazy.studies.kernel_at_start.figure import plot as plot
from sgfbias.lazy.studies.kernel_at_start.measure import measure as measure

NAME = "kernel-at-start"
PRECISION = "float32"
SECONDS = 80
REFERENCES = {
    "zou2018": "the network, its Gaussian start, and training that depends on the separation",
    "cho2009": "the arc-cosine kernels",
}
