"""Is my network still a kernel? How far training goes from where it starts.

A wide deep ReLU network `f(x) = v^T s(W_L s(... s(W_1 x)))` that starts from Gaussian
weights moves little, and its training is that of a fixed kernel, the tangent kernel
`K = J J^T` with J = df/dw at the start. The functions here take any Equinox module.
"""

from sgfbias.core.tangent import tangent_kernel as ntk
from sgfbias.lazy.network import DeepReLU as DeepReLU
from sgfbias.lazy.problem import SeparatedSphere as SeparatedSphere
from sgfbias.lazy.theory import correlations as correlations
from sgfbias.lazy.theory import layer_kernels as layer_kernels
from sgfbias.lazy.theory import near_zero_fraction as near_zero_fraction
from sgfbias.lazy.theory import norm_variance as norm_variance
from sgfbias.lazy.theory import output_covariance as output_covariance

__all__ = [
    "DeepReLU",
    "SeparatedSphere",
    "correlations",
    "layer_kernels",
    "near_zero_fraction",
    "norm_variance",
    "ntk",
    "output_covariance",
]
