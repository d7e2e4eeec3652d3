"""Write the page `combinations.md`, which lists the noise models, coordinates and
solvers that go together.

`python docs/combinations.py` asks `simulate` itself and writes the page.
`tests/house/test_docs.py` checks that the page agrees with what `simulate` accepts and
refuses today. Each combination is traced for two steps on a small problem, which runs
every check of `simulate` without compiling anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import sgfbias as sgf

PAGE = Path(__file__).with_name("combinations.md")
N, D = 3, 4

NOISES = {
    "`NoNoise()`": sgf.NoNoise(),
    "`MeanLossNoise()`": sgf.MeanLossNoise(),
    "`PerSampleNoise()`": sgf.PerSampleNoise(),
    "`MinibatchNoise(b)`": sgf.MinibatchNoise(2),
    "`LabelNoise(delta)`": sgf.LabelNoise(0.1),
    "`LabelNoise(schedule)`": sgf.LabelNoise(lambda iteration: 0.1 / (1 + iteration)),
    "`IsotropicNoise(sigma)`": sgf.IsotropicNoise(0.1),
    "`MinibatchNoise(b) + LabelNoise(delta)`": sgf.MinibatchNoise(2)
    + sgf.LabelNoise(0.1, mean_loss=False),
}
SOLVERS = {
    "Euler": dfx.Euler(),
    "PredictorCorrector": sgf.PredictorCorrector(),
    "RungeKuttaChebyshev": sgf.RungeKuttaChebyshev(),
    "Heun": dfx.Heun(),
    "EulerHeun": dfx.EulerHeun(),
    "ItoMilstein": dfx.ItoMilstein(),
}
LETTERS = {
    "Euler": "E",
    "PredictorCorrector": "P",
    "RungeKuttaChebyshev": "C",
    "Heun": "H",
    "EulerHeun": "S",
    "ItoMilstein": "M",
}
REFUSED_SOLVERS = {
    "`ReversibleHeun()`": dfx.ReversibleHeun(),
    "`SPaRK()`": dfx.SPaRK(),
    "`KenCarp4()`": dfx.KenCarp4(),
}

OTHERS = {
    "`GradientFlow()`, adaptive": sgf.GradientFlow(),
    "`GradientFlow(dt=)`": sgf.GradientFlow(dt=0.1),
    "`MomentumFlow(lam)`": sgf.MomentumFlow(0.1),
    "`StochasticGradientFlow(..., order=2)`": sgf.StochasticGradientFlow(
        0.1, sgf.MinibatchNoise(1), order=2
    ),
    '`StochasticGradientFlow(..., increments="two-point")`': sgf.StochasticGradientFlow(
        0.1, increments="two-point"
    ),
    "`GradientDescent(gamma)`": sgf.GradientDescent(0.1),
    "`StochasticGradientDescent(gamma, b)`": sgf.StochasticGradientDescent(0.1),
    "`SVAG(gamma, l, b)`": sgf.SVAG(0.1, 2),
    "`OptaxDescent(transformation, gamma, b)`": sgf.OptaxDescent(optax.adam(1e-3), 1.0),
}


def places() -> dict[str, tuple[Any, Any, str]]:
    """Return `{heading: (network, problem, coordinates)}`, one entry per column."""
    X, y = jax.random.normal(jax.random.key(0), (N, D), jnp.float64), jnp.ones(N, jnp.float64)
    regression = sgf.SparseRegression(X, y)
    shallow, deep = (
        sgf.DiagonalNetwork.init(alpha=0.1, d=D, depth=p, dtype=jnp.float64) for p in (2, 3)
    )
    product = sgf.ProductNetwork.init(alpha=0.1, d=D, dtype=jnp.float64)
    one, several = (
        eqx.nn.MLP(D, size, 2, 1, key=jax.random.key(0), dtype=jnp.float64)
        for size in ("scalar", 2)
    )
    classes = sgf.Problem(X, jnp.zeros((N, 2), jnp.float64))
    return {
        "diagonal, `mirror`": (shallow, regression, "mirror"),
        "diagonal, `log`": (shallow, regression, "log"),
        "diagonal, `weights`": (shallow, regression, "weights"),
        "depth p >= 3, `mirror`": (deep, regression, "mirror"),
        "depth p >= 3, `weights`": (deep, regression, "weights"),
        "product, `weights`": (product, regression, "weights"),
        "any model, one output": (one, regression, "weights"),
        "any model, several outputs": (several, classes, "weights"),
    }


def refusal(dynamics: Any, place: tuple[Any, Any, str], **options: Any) -> str:
    """Return the reason why `simulate` refuses, or "" if it accepts."""
    network, problem, coordinates = place
    keys = sgf.seeds(0, 1) if dynamics.is_stochastic else None
    length = {"t1": 1.0} if dynamics.clock is None else {"steps": 2}
    try:
        # The call is traced and not run, because `simulate` raises all its refusals
        # while it is traced.
        jax.eval_shape(
            lambda k: sgf.simulate(
                dynamics, network, problem, keys=k, coordinates=coordinates, **length, **options
            ).final["loss"],
            keys,
        )
    except ValueError as error:
        return str(error)
    return ""


class Notes:
    """Number the reasons for refusals.

    Reasons that differ only in the name of the refused object share a number.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []

    def mark(self, reason: str, name: str) -> str:
        """Return the number of a reason, as a superscript."""
        text = reason.replace(name, "This")
        if text not in self.texts:
            self.texts.append(text)
        return f"<sup>{self.texts.index(text) + 1}</sup>"

    def lines(self) -> list[str]:
        """Return the reasons as a numbered list in Markdown."""
        return [f"{k}. {text}" for k, text in enumerate(self.texts, 1)]


def cell(noise: Any, place: tuple[Any, Any, str], notes: Notes) -> str:
    """Return the solvers that accept a noise model in a place, with marks for the
    reasons why the others refuse it.
    """
    flow = sgf.StochasticGradientFlow(0.1, noise)
    refused = {name: refusal(flow, place, solver=solver) for name, solver in SOLVERS.items()}
    marks = "".join(
        dict.fromkeys(notes.mark(reason, name) for name, reason in refused.items() if reason)
    )
    accepted = [LETTERS[name] for name, reason in refused.items() if not reason]
    return ("all" if not marks else " ".join(accepted) or "none") + marks


def table(corner: str, columns: list[str], rows: dict[str, list[str]]) -> list[str]:
    """Return a table in Markdown."""
    return [
        f"| {corner} | {' | '.join(columns)} |",
        f"| --- |{' --- |' * len(columns)}",
        *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()),
    ]


def page() -> str:
    """Return the page as Markdown."""
    where, noises, motions = places(), Notes(), Notes()
    first = {
        name: [cell(noise, place, noises) for place in where.values()]
        for name, noise in NOISES.items()
    }

    def moves(dynamics: Any, place: tuple[Any, Any, str]) -> str:
        reason = refusal(dynamics, place).partition(", but are")[0]
        return "no" + motions.mark(reason, type(dynamics).__name__) if reason else "yes"

    second = {
        name: [moves(dynamics, place) for place in where.values()]
        for name, dynamics in OTHERS.items()
    }
    legend = ", ".join(
        f"**{letter}** `{'sgfbias' if hasattr(sgf, name) else 'diffrax'}.{name}()`"
        for name, letter in LETTERS.items()
    )
    mirror = where["diagonal, `mirror`"]
    bad = [
        f"- {name}: {refusal(sgf.StochasticGradientFlow(0.1), mirror, solver=solver)}"
        for name, solver in REFUSED_SOLVERS.items()
    ]
    lines = [
        "---",
        "hide: [toc]",
        "---",
        "",
        "# What goes together",
        "",
        "`docs/combinations.py` writes this page by asking `simulate` for every combination, and "
        "a test checks that the page is up to date. The reasons below a table are the errors "
        "that `simulate` raises. The argument `coordinates=` takes `mirror`, `log` or `weights`. "
        "The default is `mirror` for first-order flows on diagonal networks and `weights` for "
        "everything else.",
        "",
        "## Noise models, coordinates and solvers",
        "",
        "The table shows which solvers accept `StochasticGradientFlow(gamma, noise)` in each "
        f"place. The solvers are {legend}; **all** means every one of them.",
        "",
        '<div class="wide" markdown>',
        "",
        *table("noise", list(where), first),
        "",
        "</div>",
        "",
        *noises.lines(),
        "",
        "All noise models but `IsotropicNoise` stay in the span of the examples, so the bias "
        "theorem holds for them, and at depth 2 `land` predicts where they end, once label noise "
        "has been switched off. See [noise models](guide/noise.md).",
        "",
        "## Other dynamics and coordinates",
        "",
        '<div class="wide" markdown>',
        "",
        *table("dynamics", list(where), second),
        "",
        "</div>",
        "",
        *motions.lines(),
        "",
        "`GradientFlow` and `MomentumFlow` take Diffrax's solvers of ordinary differential "
        "equations, which are adaptive if `dt` is not given. `GradientDescent`, "
        "`StochasticGradientDescent`, `SVAG` and `OptaxDescent` are iterations and take no "
        "solver. Only these take a problem with `perturb=`, which changes the examples of every "
        "iteration.",
        "",
        "## Solvers that are refused",
        "",
        *bad,
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    PAGE.write_text(page(), encoding="utf-8")
