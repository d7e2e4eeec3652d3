"""How noisy is SGD? Dynamical mean-field theory of descent with random masks.

A linear model with `n = alpha d` examples moves by
`w <- w - eta [lambda w + sum_mu s_mu L'(y_mu, r_mu) x_mu / sqrt(d)]`, where the masks s
choose the examples of a step, with or without memory. For large d its training curves
follow from the law of the data alone.
"""

from sgfbias.meanfield.committee import CommitteeTeacher as CommitteeTeacher
from sgfbias.meanfield.curves import Curves as Curves
from sgfbias.meanfield.data import GaussianMixture as GaussianMixture
from sgfbias.meanfield.error import door_error as door_error
from sgfbias.meanfield.finite import simulate as simulate
from sgfbias.meanfield.fitting import fit as fit
from sgfbias.meanfield.labels import LinearTeacher as LinearTeacher
from sgfbias.meanfield.labels import RandomLabels as RandomLabels
from sgfbias.meanfield.mixture import Mixture as Mixture
from sgfbias.meanfield.report import noise_report as noise_report
from sgfbias.meanfield.rule import MaskedDescent as MaskedDescent
from sgfbias.meanfield.rule import Start as Start
from sgfbias.meanfield.solution import solve as solve
from sgfbias.meanfield.statics import gardner_capacity as gardner_capacity
from sgfbias.meanfield.statics import stationary_point as stationary_point
from sgfbias.meanfield.temperature import effective_temperature as effective_temperature
from sgfbias.meanfield.temperature import least_squares_temperature as least_squares_temperature
from sgfbias.meanfield.temperature import marchenko_pastur as marchenko_pastur
