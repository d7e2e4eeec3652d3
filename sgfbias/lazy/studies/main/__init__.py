"""Do wide networks train near their start, by the rates of a fixed kernel, for every
loss of the paper's family?
"""

from sgfbias.lazy.studies.main.claims import claims as claims
from sgfbias.lazy.studies.main.config import PAPER as PAPER
from sgfbias.lazy.studies.main.config import QUICK as QUICK
from sgfbias.lazy.studies.main.config import Config as Config
from sgfbias.lazy.studies.main.figure import plot as plot
from sgfbias.lazy.studies.main.measure import measure as measure

PRECISION = "float64"
SECONDS = 120
REFERENCES = {
    "zou2018": "the network, the data, the family of losses, and training near the start",
    "chizat2019": "the scale of the outputs, which decides whether training is lazy",
}
