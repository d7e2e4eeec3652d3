"""Which solution does the training algorithm pick, and does theory predict it?

The names of the core and of the main system, diagonal linear networks, are defined
here. Every other system is a subpackage `sgfbias.NAME`, which is loaded at its first
use.
"""

from sgfbias.core.brownian import seeds as seeds
from sgfbias.core.descent import SVAG as SVAG
from sgfbias.core.descent import GradientDescent as GradientDescent
from sgfbias.core.descent import OptaxDescent as OptaxDescent
from sgfbias.core.descent import RuleDescent as RuleDescent
from sgfbias.core.descent import StochasticGradientDescent as StochasticGradientDescent
from sgfbias.core.flow import GradientFlow as GradientFlow
from sgfbias.core.flow import MomentumFlow as MomentumFlow
from sgfbias.core.flow import StochasticGradientFlow as StochasticGradientFlow
from sgfbias.core.gain import GainController as GainController
from sgfbias.core.kept import keep_compiled as keep_compiled
from sgfbias.core.loss import AbstractLoss as AbstractLoss
from sgfbias.core.loss import SoftmaxCrossEntropyLoss as SoftmaxCrossEntropyLoss
from sgfbias.core.loss import SquaredLoss as SquaredLoss
from sgfbias.core.masks import BernoulliMask as BernoulliMask
from sgfbias.core.masks import PersistentMask as PersistentMask
from sgfbias.core.network import AbstractNetwork as AbstractNetwork
from sgfbias.core.noise import AbstractNoise as AbstractNoise
from sgfbias.core.noise import IsotropicNoise as IsotropicNoise
from sgfbias.core.noise import LabelNoise as LabelNoise
from sgfbias.core.noise import MeanLossNoise as MeanLossNoise
from sgfbias.core.noise import MinibatchNoise as MinibatchNoise
from sgfbias.core.noise import NoNoise as NoNoise
from sgfbias.core.noise import PerSampleNoise as PerSampleNoise
from sgfbias.core.problem import Problem as Problem
from sgfbias.core.project import Sphere as Sphere
from sgfbias.core.record import Record as Record
from sgfbias.core.schedule import UntilTime as UntilTime
from sgfbias.core.simulate import simulate as simulate
from sgfbias.core.solver import PredictorCorrector as PredictorCorrector
from sgfbias.core.solver import RungeKuttaChebyshev as RungeKuttaChebyshev
from sgfbias.core.starts import Drawn as Drawn
from sgfbias.core.starts import Stacked as Stacked
from sgfbias.core.tangent import tangent_kernel as tangent_kernel
from sgfbias.core.trajectory import Status as Status
from sgfbias.core.trajectory import Trajectory as Trajectory
from sgfbias.core.two_class import ExponentialLoss as ExponentialLoss
from sgfbias.core.two_class import LogisticLoss as LogisticLoss
from sgfbias.core.two_class import SquaredHingeLoss as SquaredHingeLoss
from sgfbias.diagonal.deep import DeepDiagonalNetwork as DeepDiagonalNetwork
from sgfbias.diagonal.network import DiagonalNetwork as DiagonalNetwork
from sgfbias.diagonal.problem import SparseRegression as SparseRegression
from sgfbias.diagonal.product import ProductNetwork as ProductNetwork
from sgfbias.diagonal.theory.curve import solution_curve as solution_curve
from sgfbias.diagonal.theory.edge import StabilityEdge as StabilityEdge
from sgfbias.diagonal.theory.edge import stability_edge as stability_edge
from sgfbias.diagonal.theory.guarantee import Guarantee as Guarantee
from sgfbias.diagonal.theory.guarantee import guarantee as guarantee
from sgfbias.diagonal.theory.landing import land as land
from sgfbias.diagonal.theory.lyapunov import LyapunovIdentity as LyapunovIdentity
from sgfbias.diagonal.theory.lyapunov import lyapunov_identity as lyapunov_identity
from sgfbias.diagonal.theory.minimum_norm import minimum_l1 as minimum_l1
from sgfbias.diagonal.theory.minimum_norm import minimum_l2 as minimum_l2
from sgfbias.diagonal.theory.selection import select as select
from sgfbias.ensemble.disk import StoreError as StoreError
from sgfbias.ensemble.driver import SweepInterrupted as SweepInterrupted
from sgfbias.ensemble.pool import processes as processes
from sgfbias.ensemble.status import open_sweep as open_sweep
from sgfbias.ensemble.sweep import Sweep as Sweep
from sgfbias.gradients.growth import TangentGrowth as TangentGrowth
from sgfbias.gradients.growth import tangent_growth as tangent_growth
from sgfbias.gradients.hypergradient import Hypergradient as Hypergradient
from sgfbias.gradients.hypergradient import hypergradient as hypergradient
from sgfbias.gradients.tune import Bounds as Bounds
from sgfbias.gradients.tune import Tuned as Tuned
from sgfbias.gradients.tune import tune as tune
from sgfbias.study.citing import cite as cite


def __getattr__(name: str) -> object:
    """Import the system called `name`, a folder of the package that has studies; or the
    package's `__version__`.
    """
    import importlib
    from pathlib import Path

    if name == "__version__":
        from sgfbias.core.provenance import version

        return version()
    if (Path(__file__).parent / name / "studies").is_dir():
        return importlib.import_module(f"sgfbias.{name}")
    raise AttributeError(f"module 'sgfbias' has no attribute {name!r}")
