"""Which max-margin problem does an optimiser solve?

A homogeneous classifier that fits its data moves on by `dw/dt = -h grad L`, with a
conditioner h that depends on the optimiser. Its loss falls for ever, and only the
direction of w matters. The clock `nu = -log sum_i l_i` follows it to any loss.
"""

from sgfbias.core.two_class import ExponentialLoss as ExponentialLoss
from sgfbias.margin.certificate import Certificate as Certificate
from sgfbias.margin.certificate import Which as Which
from sgfbias.margin.certificate import certify as certify
from sgfbias.margin.certificate import which as which
from sgfbias.margin.conditioners import AdaGrad as AdaGrad
from sgfbias.margin.conditioners import AdamNoMomentum as AdamNoMomentum
from sgfbias.margin.conditioners import Identity as Identity
from sgfbias.margin.conditioners import RMSProp as RMSProp
from sgfbias.margin.degree import Homogeneity as Homogeneity
from sgfbias.margin.degree import homogeneity as homogeneity
from sgfbias.margin.descent import MarginDescent as MarginDescent
from sgfbias.margin.flow import MarginFlow as MarginFlow
from sgfbias.margin.geometry import alignment_gap as alignment_gap
from sgfbias.margin.landing import Landed as Landed
from sgfbias.margin.landing import land as land
from sgfbias.margin.linear import LinearMargin as LinearMargin
from sgfbias.margin.linear import max_margin as max_margin
from sgfbias.margin.network import Linear as Linear
from sgfbias.margin.objective import margins as margins
from sgfbias.margin.objective import nu as nu
from sgfbias.margin.rules import Adam as Adam
from sgfbias.margin.rules import Sign as Sign
from sgfbias.margin.theory import AdaGradLimit as AdaGradLimit
from sgfbias.margin.theory import adagrad_limit as adagrad_limit
from sgfbias.margin.theory import adam_rate as adam_rate
from sgfbias.margin.theory import crossover as crossover
