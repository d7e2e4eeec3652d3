"""By how much does isotropic noise on the gradient, as differential privacy adds it,
break the bias theorem, and does it lower the error?
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from sgfbias.study import AtLeast, Count, NotNegative, Positive, SeededConfig

NAME = "noisy-sgd"
SECONDS = 90
REFERENCES = {
    "sander2024": "isotropic noise and its effect on the bias",
    "pesme2021": "the bias theorem that isotropic noise breaks",
}
WIDTHS = (1.0, 0.25, 0.0625)  # dt / gamma of the runs in weights coordinates
TIGHT = 1e-14  # a seed with a smaller loss is within 1e-6 of its limit


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """Isotropic noise is added to the gradient, to see how far the solution moves away
    from the theorem's, which solution is selected instead, and how large its error is.
    """

    seeds: Annotated[int, AtLeast(16)] = 192
    """Number of seeds for every sigma. A seed has the same Brownian path at all
    sigmas.
    """
    steps: Annotated[int, AtLeast(4)] = 7_000
    """Number of steps, of width dt = gamma, of the runs in mirror coordinates."""
    step_size: Positive = 0.05
    """Step size gamma of the flow."""
    sigmas: tuple[NotNegative, ...] = (0.0, 0.1, 0.2, 0.4, 0.8, 1.2)
    """Strengths sigma of the isotropic noise: at least four increasing numbers, the
    first one 0. At sigma = 1 the isotropic noise shrinks log alpha as much as SGD's own
    noise does on standardised features.
    """
    alpha: Positive = 0.1
    """Scale alpha of the initialisation."""
    n: Count = 20
    """Number of examples."""
    d: Count = 50
    """Number of features."""
    sparsity: Count = 3
    """Number of non-zero entries of the truth beta*."""
    problem_seed: int = 0
    """Seed from which the problem is drawn."""
    weights_seeds: Annotated[int, AtLeast(16)] = 64
    """Number of seeds of the runs in weights coordinates, where the theorem does not
    hold by construction.
    """
    weights_steps: Annotated[int, AtLeast(4)] = 300
    """Length of the runs in weights coordinates, in iterations of flow time gamma."""
    weights_sigma: Positive = 0.5
    """Strength sigma of the isotropic noise in the runs in weights coordinates."""
    delta: Positive = 0.3
    """Level of the label noise in the comparison runs in weights coordinates, during
    the whole run. It is added to every derivative of the loss.
    """
    alphas: tuple[Positive, ...] = (0.3, 0.1, 0.03, 0.01, 0.001)
    """Initialisation scales at which the cost and gain in error that theory predicts
    are computed on many problems.
    """
    problems: Annotated[int, AtLeast(8)] = 64
    """Number of problems on which the cost and gain in error that theory predicts are
    computed.
    """

    def check(self) -> None:
        if (
            len(self.sigmas) < 4
            or self.sigmas[0] != 0
            or list(self.sigmas) != sorted(set(self.sigmas))
        ):
            raise ValueError(
                "sigmas must be at least four increasing numbers, the first one 0, but are "
                f"{self.sigmas}"
            )
        if not self.alphas:
            raise ValueError("alphas must be at least one number, but there is none")
        self.check_choice()


QUICK = Config(
    seeds=64,
    steps=2500,
    sigmas=(0.0, 0.1, 0.2, 0.5, 1.0),
    alpha=0.2,
    n=12,
    d=30,
    weights_steps=100,
    alphas=(0.1,),
    problems=8,
)


PAPER = Config(
    seeds=1024,
    steps=40_000,
    step_size=0.02,
    n=40,
    d=100,
    sparsity=5,
    weights_seeds=256,
    weights_steps=1000,
)
