"""The explorer's box of code to copy: a command line and a Python text for what is
shown.
"""

from __future__ import annotations

import shlex

from sgfbias.diagonal.explore.config import ExploreConfig


def command_line(config: ExploreConfig) -> str:
    """The study that is closest to what is shown, at its own length, with a comment on
    the differences.
    """
    shared = {
        "alpha": config.alpha,
        "step-size": config.step_size,
        "n": config.n,
        "d": config.d,
        "sparsity": config.sparsity,
    }
    if config.noise == "label":
        budget = config.strength**2 * config.label_steps * config.step_size
        comment = (
            "# This study asks when to spend this budget of label noise, int delta^2 dt. "
            "It draws a new problem for every seed."
        )
        return f"{comment}\n{_run('noise-schedule', {'budget': budget, **shared})}"
    comment = (
        "# This study runs SGD, its flow and gradient descent on this problem to the end "
        "and compares them with theory."
    )
    if config.noise == "mean-loss" and config.strength != 1:
        comment += (
            "\n# Its noise is that of batches of 1; only the Python text has the strength of "
            f"{config.strength:g}."
        )
    options = shared | {"problem-seed": config.problem_seed, "seeds": config.seeds}
    return f"{comment}\n{_run('diagonal', options)}"


def python_text(config: ExploreConfig) -> str:
    """A Python program that makes the same runs, lands them and prints the numbers that
    are shown.
    """
    gamma, keys = _number(config.step_size), f"sgf.seeds(0, {config.seeds})"
    head = f"""\
import jax
import jax.numpy as jnp
import sgfbias as sgf

jax.config.update("jax_enable_x64", True)
problem = sgf.SparseRegression.sample(
    jax.random.key({config.problem_seed}), n={config.n}, d={config.d}, sparsity={config.sparsity}
)
network = sgf.DiagonalNetwork.init(alpha={_number(config.alpha)}, d={config.d})
gradient_flow = sgf.land(
    sgf.simulate(sgf.GradientFlow(dt={gamma}), network, problem, steps={config.steps})
)
"""
    if config.noise == "none":
        return head + _TAIL_NONE
    noise_gamma, scale = gamma, "gamma"
    if config.noise == "mean-loss":
        if config.strength != 1:
            noise_gamma, scale = (
                f"{_number(config.strength)} * {gamma}, dt={gamma}",
                "strength * gamma",
            )
        runs = f"""
flow = sgf.StochasticGradientFlow({noise_gamma})
runs = sgf.simulate(flow, network, problem, keys={keys}, steps={config.steps})
landed = sgf.land(runs)  # The limit of each seed, with an error estimate.
integral = runs.final["loss_integral"] + landed.remaining
"""
    else:
        delta = _number(config.strength)
        runs = f"""
flow = sgf.StochasticGradientFlow({gamma})
noisy = sgf.StochasticGradientFlow({gamma}, sgf.LabelNoise({delta}))
on = sgf.simulate(noisy, network, problem, keys={keys}, steps={config.label_steps})
follow = lambda start, key: sgf.simulate(flow, start, problem, keys=key, steps={config.steps})
# Without label noise the flow has a limit.
runs = jax.vmap(follow)(on.networks, sgf.seeds({config.seeds}, {2 * config.seeds}))
landed = jax.vmap(sgf.land)(runs)
with_labels = on.final["loss_integral"] + {delta}**2 * on.times[-1]
integral = with_labels + runs.final["loss_integral"] + landed.remaining
"""
    return head + runs + _TAIL.replace("SCALE", scale).replace("GAMMA", noise_gamma.split(",")[0])


_TAIL = """
# Theorem 1: alpha_inf = alpha exp(-2 SCALE h int L). The prediction is the solution that
# the selection program has there. Seeds that diverged, or that are too close to the
# stability edge, have no error estimate and are left out.
keep = jnp.isfinite(landed.error)
log_alpha = network.log_alpha - 2 * GAMMA * jnp.where(keep, integral, 0)[:, None] * problem.h
predicted = jax.vmap(lambda la: sgf.select(problem, la).beta)(log_alpha)
print(f"diverged            {int(runs.diverged.sum())} of {runs.diverged.size} seeds")
print(f"error, landed       {jnp.median(landed.validation_error[keep]):.3g} (median)")
print(f"error, gradient flow {gradient_flow.validation_error:.3g}")
print(f"error, minimum l1   {problem.validation_error(sgf.minimum_l1(problem)):.3g}")
print(f"error, minimum l2   {problem.validation_error(sgf.minimum_l2(problem)):.3g}")
"""

_TAIL_NONE = """
predicted = sgf.select(problem, network.log_alpha).beta  # Without noise alpha does not change.
print(f"error, gradient flow {gradient_flow.validation_error:.3g}")
print(f"error, predicted     {problem.validation_error(predicted):.3g}")
print(f"error, minimum l1    {problem.validation_error(sgf.minimum_l1(problem)):.3g}")
print(f"error, minimum l2    {problem.validation_error(sgf.minimum_l2(problem)):.3g}")
"""


def _run(study: str, options: dict[str, float]) -> str:
    words = [word for name, value in options.items() for word in (f"--{name}", _number(value))]
    return shlex.join(["sgfbias", "run", study, *words])


def _number(value: float) -> str:
    """The shortest decimal number that is read back as the same value. Twelve digits
    suffice, because sliders compute 10^x.
    """
    return f"{value:.12g}"
