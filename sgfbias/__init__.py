"""Which solution does the training algorithm pick, and does theory predict it?"""

from sgfbias.core.brownian import seeds as seeds
from sgfbias.core.descent import GradientDescent as GradientDescent
from sgfbias.core.descent import StochasticGradientDescent as StochasticGradientDescent
from sgfbias.core.flow import GradientFlow as GradientFlow
from sgfbias.core.flow import StochasticGradientFlow as StochasticGradientFlow
from sgfbias.core.noise import IsotropicNoise as IsotropicNoise
from sgfbias.core.noise import LabelNoise as LabelNoise
from sgfbias.core.noise import MeanLossNoise as MeanLossNoise
from sgfbias.core.noise import MinibatchNoise as MinibatchNoise
from sgfbias.core.noise import NoNoise as NoNoise
from sgfbias.core.noise import PerSampleNoise as PerSampleNoise
from sgfbias.core.problem import Problem as Problem
from sgfbias.core.problem import SquaredLoss as SquaredLoss
from sgfbias.core.record import Record as Record
from sgfbias.core.simulate import simulate as simulate
from sgfbias.core.trajectory import Status as Status
from sgfbias.core.trajectory import Trajectory as Trajectory
from sgfbias.diagonal.curve import solution_curve as solution_curve
from sgfbias.diagonal.landing import land as land
from sgfbias.diagonal.network import DiagonalNetwork as DiagonalNetwork
from sgfbias.diagonal.problem import SparseRegression as SparseRegression
from sgfbias.diagonal.selection import minimum_l1 as minimum_l1
from sgfbias.diagonal.selection import minimum_l2 as minimum_l2
from sgfbias.diagonal.selection import select as select
