r"""The identity behind the convergence guarantee, along simulated paths.

Pesme, Pillaud-Vivien, Flammarion 2021, Lemma 2: for the flow with mean-loss noise from
`w_+ = w_- = alpha` and any solution beta* of X beta = y,

    V_t = -phi_{alpha_t}(beta_t) + <grad phi_{alpha_t}(beta_t), beta_t - beta*>
          + gamma <h, |beta*|> int L ds
        = |alpha|_2^2/2 - 2 int L (1 - (gamma/2) <h, xi + |beta*|>) ds + S_t,

with the martingale `dS = sqrt(gamma L) <X^T dB, beta - beta*> / sqrt(n)`, whose
quadratic variation is `4 gamma int L^2 ds`. For noise of any covariance rate C on the
examples, Itô's formula gives the same with `Q = diag(X^T C X)` in place of `gamma L h`
and with the quadratic variation `int r^T C r ds`.

A run is solved in steps, so that the two sides differ. The mean of the difference falls
as dt, and its scatter as the root of dt, which is the strong order of Euler's scheme:
a step adds `1/4 sum xi_j [8 (x_j^T dc)^2 - its mean]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from sgfbias.core.checks import as_float_array, check_shape, is_concrete, shown
from sgfbias.core.trajectory import Trajectory
from sgfbias.diagonal.network import SummedNetwork
from sgfbias.diagonal.path_sums import SCALARS
from sgfbias.diagonal.potential import xi_from
from sgfbias.diagonal.theory.minimum_norm import minimum_l1


class LyapunovIdentity(eqx.Module):
    """The terms of the identity along runs. A single run has no axis of seeds.

    - `times`: (times,). The recorded times.
    - `value`: (seeds, times). V.
    - `drift`: (seeds, times). What the identity adds to V without noise:
      `-2 int L (1 - (gamma/2) <h, xi + |beta*|>)`.
    - `martingale`: (seeds, times). S.
    - `quadratic_variation`: (seeds, times). <S>.
    - `difference`: (seeds, times). `V_t - V_0 - drift - S`, which is 0 for exact paths.
    - `gap`: (seeds,). The largest size of `difference` over the recorded times.
    """

    references: ClassVar[Mapping[str, str]] = {"pesme2021": "the identity, Lemma 2"}
    times: Float[Array, " times"]
    value: Float[Array, "*seeds times"]
    drift: Float[Array, "*seeds times"]
    martingale: Float[Array, "*seeds times"]
    quadratic_variation: Float[Array, "*seeds times"]

    @property
    def difference(self) -> Float[Array, "*seeds times"]:
        """The left side minus the right side."""
        return self.value - self.value[..., :1] - self.drift - self.martingale

    @property
    def gap(self) -> Float[Array, "*seeds"]:
        """The largest size of `difference`."""
        return jnp.max(jnp.abs(self.difference), axis=-1)

    def __repr__(self) -> str:
        if not is_concrete(self.value):
            return "LyapunovIdentity(traced)"
        size = jnp.sqrt(jnp.mean(jnp.square(self.martingale[..., -1])))
        return (
            f"LyapunovIdentity({self.gap.size} paths, median gap {float(jnp.median(self.gap)):.1e} "
            f"beside a martingale of size {float(size):.1e})"
        )


def lyapunov_identity(runs: Trajectory, *, interpolator: Any = None) -> LyapunovIdentity:
    """The terms of the identity behind the convergence guarantee, seed by seed.

    **Arguments:**

    - `runs`: runs of a `DiagonalNetwork` under a first-order `StochasticGradientFlow`,
      in any coordinates, recorded with `record=sgf.Record(path_sums=True)`. Mean-loss
      noise gives the identity of the paper, other noise on the examples its
      generalisation.
    - `interpolator`: beta* (d,), a solution of X beta = y. The default is the one of
      smallest l1 norm. For a beta that does not fit the data the identity is false.

    **Returns:** a `LyapunovIdentity`.

    **Raises:** `ValueError` for runs that were not recorded with `path_sums`.
    """
    if not isinstance(runs, Trajectory):
        raise ValueError(f"`runs` must be what simulate returns, but is {shown(runs)}")
    if not isinstance(runs.network, SummedNetwork):
        raise ValueError(
            "the identity needs sums along the paths, which these runs have not recorded: run them "
            "again with record=Record(path_sums=True)"
        )
    problem = runs.problem
    if interpolator is None:
        beta = minimum_l1(problem)
    else:
        beta = as_float_array(interpolator, "interpolator").astype(problem.dtype)
        check_shape(beta, "interpolator", (problem.d,))
    log_ratio, shrinkage = runs["log_ratio"], runs["shrinkage"]
    xi = xi_from(runs["log_alpha"], log_ratio)
    toll = shrinkage @ jnp.abs(beta)
    value = jnp.sum(xi, axis=-1) / 4 - log_ratio @ beta / 4 + toll
    work, square, moved = (runs[name] for name in SCALARS)
    fallen = 2 * runs["loss_integral"]
    return LyapunovIdentity(
        times=runs.times,
        value=value,
        drift=moved + toll - fallen,
        martingale=work + fallen,
        quadratic_variation=square,
    )
