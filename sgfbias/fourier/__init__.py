"""Mean estimation: a single number moves by SGD on its squared distances to the data.

A single number w moves on the loss `L(w) = 1/(2n) sum_i (w - y_i)^2`. With batches of
one example, SGD is the linear recursion `w <- w - gamma (w - y_i)`.
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
from sgfbias.fourier.problem import Mean as Mean
from sgfbias.fourier.problem import draw as draw
from sgfbias.fourier.robustness import Robustness as Robustness
from sgfbias.fourier.robustness import robustness as robustness
from sgfbias.fourier.selection import Selection as Selection
from sgfbias.fourier.selection import select as select
from sgfbias.fourier.theory import flow_variance as flow_variance
from sgfbias.fourier.theory import stationary_variance as stationary_variance
