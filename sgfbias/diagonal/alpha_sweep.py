"""Final error against the scale of the initialisation: gradient descent, SGD and its flow, over three decades of alpha, as one sweep."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.descent import GradientDescent, StochasticGradientDescent
from sgfbias.core.flow import StochasticGradientFlow
from sgfbias.core.provenance import attributes
from sgfbias.core.record import Record
from sgfbias.core.simulate import simulate
from sgfbias.core.trajectory import Trajectory
from sgfbias.diagonal.alpha_sweep_claims import claims as claims
from sgfbias.diagonal.alpha_sweep_claims import plot as plot
from sgfbias.diagonal.landing import land
from sgfbias.diagonal.network import DiagonalNetwork
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.selection import select_many
from sgfbias.diagonal.stepsize import find_step_size
from sgfbias.ensemble.drive import SweepInterrupted
from sgfbias.ensemble.sweep import Sweep

LAST = Record(times=2)
NOT_OF_A_CELL = ("seeds", "alpha_low", "alpha_high", "levels")  # how the study lays out its cells
QUIET = 100  # times less noise, in the control


@dataclasses.dataclass(frozen=True)
class AlphaSweepConfig:
    """Final error against alpha for gradient descent, SGD and its flow: noise acts as a smaller initialisation, and helps most where alpha is small."""

    seeds: int = 256
    """Seeds of every alpha."""
    alpha_low: float = 1e-4
    """Smallest alpha."""
    alpha_high: float = 1e-1
    """Largest alpha."""
    levels: int = 10
    """Alphas, log-spaced."""
    step_size: float | Literal["auto"] = "auto"
    """gamma; auto finds the largest for which SGD and its flow converge at the largest alpha, by trying."""
    steps: int = 10_000
    """Iterations of GD and SGD, after which the programme of their own law is solved."""
    flow_steps: int = 2_000
    """Steps of the flow before it is landed."""
    alpha: float = 0.01
    """Of a single cell; the sweep's axis."""
    n: int = 40
    """Examples."""
    d: int = 100
    """Features."""
    sparsity: int = 5
    """Non-zero entries of the truth."""
    problem_seed: int = 0
    """Seed of the drawn problem."""

    def check(self) -> None:
        """Refuse values that make no sense.

        **Raises:** `ValueError` naming the value.
        """
        for name in ("alpha_low", "alpha"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be positive and finite, but is {getattr(self, name)}")
        if not (np.isfinite(self.alpha_high) and self.alpha_high > self.alpha_low):
            raise ValueError(f"alpha_high must be finite and above alpha_low = {self.alpha_low}, but is {self.alpha_high}")
        if self.step_size != "auto" and not (np.isfinite(self.step_size) and self.step_size > 0):
            raise ValueError(f"step_size must be positive and finite, or auto, but is {self.step_size}")
        for name, least in (("seeds", 8), ("levels", 3), ("steps", 4), ("flow_steps", 4)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, but is {getattr(self, name)}")


Config = AlphaSweepConfig
REFERENCES = {
    "pesme2021": "figure 1, right; theorem 1",
    "li2017": "the stochastic modified equation of SGD",
}


def _drawn(config: AlphaSweepConfig) -> tuple[SparseRegression, DiagonalNetwork]:
    key = jax.random.key(config.problem_seed)
    problem = SparseRegression.sample(key, n=config.n, d=config.d, sparsity=config.sparsity, dtype=jnp.float64)
    return problem, DiagonalNetwork.init(alpha=config.alpha, d=config.d, dtype=jnp.float64)


def selected_errors(runs: Trajectory, problem: SparseRegression) -> np.ndarray:
    """Errors (seeds,) of the solutions that the runs' own laws select, if nothing more were to shrink alpha; NaN for a seed that diverged."""
    log_alpha, offset, bad = (jnp.atleast_1d(v) for v in (runs.final["log_alpha"], runs.final["offset"], runs.diverged))
    if runs.status.ndim == 0:
        log_alpha, offset = log_alpha[None], offset[None]
    start = runs.network
    log_alpha = jnp.where(bad[:, None], start.log_alpha, log_alpha)
    beta = select_many(problem, log_alpha, offset=jnp.where(bad[:, None], start.offset, offset)).beta
    return np.where(bad, np.nan, jax.vmap(problem.validation_error)(beta))


def check_cell(config: AlphaSweepConfig) -> None:
    """Refuse a config that a single cell cannot have.

    **Raises:** `ValueError` naming the value.
    """
    config.check()
    if config.step_size == "auto":
        raise ValueError("a single cell needs a number as its step_size: find one by sgfbias.diagonal.stepsize.find_step_size")


def cell(config: AlphaSweepConfig, keys: Array) -> dict[str, np.ndarray]:
    """One alpha on some seeds: errors of the solutions that SGD (after half of its iterations, and all) and the flow select, with the flow's
    landing estimate, and the flow with a hundredth of the noise; how SGD and the flow ended.

    **Raises:** `ValueError` for values that make no sense, or a step size that is not a number.
    """
    check_cell(config)
    gamma = float(config.step_size)
    with jax.enable_x64(True):
        problem, network = _drawn(config)
        half, whole = (
            simulate(StochasticGradientDescent(gamma, integral="batch"), network, problem, keys=keys, steps=steps, record=LAST)
            for steps in (config.steps // 2, config.steps)
        )
        flow = simulate(StochasticGradientFlow(gamma), network, problem, keys=keys, steps=config.flow_steps, record=LAST)
        quiet = simulate(StochasticGradientFlow(gamma / QUIET, dt=gamma), network, problem, keys=keys, steps=config.flow_steps, record=LAST)
        landed = land(flow)
        return {
            "sgd_error": selected_errors(whole, problem),
            "sgd_half_error": selected_errors(half, problem),
            "flow_error": np.asarray(landed.validation_error),
            "flow_distance": np.asarray(landed.error),
            "quiet_error": np.asarray(land(quiet).validation_error),
            "loss_integral": np.asarray(flow.final["loss_integral"] + landed.remaining),
            "sgd_status": np.asarray(whole.status),
            "flow_status": np.asarray(flow.status),
        }


def run(config: AlphaSweepConfig, *, say: Callable[[str], None] = lambda line: None) -> Any:
    """Run the study; `say` is told one line per stage.

    **Returns:** an `xarray.Dataset` with dimensions alpha and seed.

    **Raises:** `ValueError` for values that make no sense, or if no step size converges.
    """
    config.check()
    with jax.enable_x64(True):
        problem, network = _drawn(dataclasses.replace(config, alpha=config.alpha_high))
        gamma = config.step_size
        if gamma == "auto":
            say(f"step size: the largest that converges at alpha = {config.alpha_high:g}")
            gamma, _ = find_step_size(problem, network)
        alphas = np.geomspace(config.alpha_low, config.alpha_high, config.levels)
        sweep = Sweep(sys.modules[__name__], {"alpha": alphas}, seeds=config.seeds, config=dataclasses.replace(config, step_size=gamma))
        say(f"gamma = {gamma:.3g}; {sweep}")
        with tempfile.TemporaryDirectory() as folder:
            try:
                stored = sweep.run(
                    Path(folder) / "alphas.zarr", progress=lambda state: say(f"  {state['chunks_done']} of {state['chunks']} chunks")
                )
            except SweepInterrupted as error:
                raise SweepInterrupted(
                    'stopped when asked to; a study keeps nothing: `sgfbias sweep` with study = "alpha-sweep" does'
                ) from error
            stored = stored.load()
        failed = [str(error) for error in stored["error"].values if error]
        if failed:
            raise ValueError(f"{len(failed)} alphas could not be run, the first with {failed[0]}")
        say(f"gradient descent, {config.steps:,} iterations")
        descent = []
        for alpha in alphas:
            start = DiagonalNetwork.init(alpha=float(alpha), d=config.d, dtype=jnp.float64)
            descent.append(selected_errors(simulate(GradientDescent(gamma), start, problem, steps=config.steps, record=LAST), problem)[0])
        dataset = stored[[name for name in stored.data_vars if stored[name].dims == ("alpha", "seed")]]
        for name in dataset.data_vars:
            dataset[name].attrs["units"] = "(target / input)^2" if str(name).endswith("error") else "1"
        dataset["gd_error"] = (("alpha",), np.array(descent), {"units": "(target / input)^2"})
        attrs = attributes({"study": "alpha-sweep", **dataclasses.asdict(config)}, dtype=jnp.float64, keys=jax.random.key(0))
        dataset.attrs = attrs | {"study": "alpha-sweep", "step_size": repr(float(gamma))}
        return dataset
