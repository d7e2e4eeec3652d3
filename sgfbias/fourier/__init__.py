"""Stabilised neurons: networks on bits, before and after flips of an attacker.

A neuron `sgn(<w, x> + b)` with bits x in {-1, +1}^d is stabilised by weights
`c sgn(w)` of equal size: `max_{|v|_inf = 1} E[tau(x) <v, x>] = |t|_1`, with the Chow
parameters `t_i = E[tau(x) x_i]` of its labels tau. Inputs move away from its threshold
in the l1 distance, which counts flips.
"""

from sgfbias.fourier.adversary import Adversary as Adversary
from sgfbias.fourier.agreement import Disagreement as Disagreement
from sgfbias.fourier.agreement import disagreement as disagreement
from sgfbias.fourier.attack import Attack as Attack
from sgfbias.fourier.attack import attack as attack
from sgfbias.fourier.certify import Certificate as Certificate
from sgfbias.fourier.certify import certify as certify
from sgfbias.fourier.coefficients import Chow as Chow
from sgfbias.fourier.coefficients import chow as chow
from sgfbias.fourier.data import Bits as Bits
from sgfbias.fourier.data import read_bits as read_bits
from sgfbias.fourier.frontier import Frontier as Frontier
from sgfbias.fourier.frontier import frontier as frontier
from sgfbias.fourier.moves import BitFlips as BitFlips
from sgfbias.fourier.moves import OneHotSwaps as OneHotSwaps
from sgfbias.fourier.neuron import sign as sign
from sgfbias.fourier.neuron import stabilise as stabilise
from sgfbias.fourier.robustness import Robustness as Robustness
from sgfbias.fourier.robustness import robustness as robustness
from sgfbias.fourier.selection import Selection as Selection
from sgfbias.fourier.selection import select as select
