"""Is my network still a kernel? How far training goes from where it starts.

A wide deep ReLU network `f(x) = v^T s(W_L s(... s(W_1 x)))` that starts from Gaussian
weights moves little, and its training is that of a fixed kernel, the tangent kernel
`K = J J^T` with J = df/dw at the start. The functions here take any Equinox module.
"""

from sgfbias.core.tangent import tangent_kernel
from sgfbias.lazy.function_space import KernelFlow as KernelFlow
from sgfbias.lazy.function_space import kernel_flow as kernel_flow
from sgfbias.lazy.losses import PowerLoss as PowerLoss
from sgfbias.lazy.models import Linearised as Linearised
from sgfbias.lazy.models import Rescaled as Rescaled
from sgfbias.lazy.models import linearise as linearise
from sgfbias.lazy.models import rescale as rescale
from sgfbias.lazy.network import DeepReLU as DeepReLU
from sgfbias.lazy.probe import Measurement as Measurement
from sgfbias.lazy.probe import Probe as Probe
from sgfbias.lazy.probe import measure as measure
from sgfbias.lazy.problem import SeparatedSphere as SeparatedSphere
from sgfbias.lazy.scaling import Scaling as Scaling
from sgfbias.lazy.scaling import scaling as scaling
from sgfbias.lazy.theory import correlations as correlations
from sgfbias.lazy.theory import layer_kernels as layer_kernels
from sgfbias.lazy.theory import near_zero_fraction as near_zero_fraction
from sgfbias.lazy.theory import norm_variance as norm_variance
from sgfbias.lazy.theory import output_covariance as output_covariance

ntk = tangent_kernel
