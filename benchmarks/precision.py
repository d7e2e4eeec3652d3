"""Work against precision, for this package and its peers.

The benchmarks measure the seconds to a strong error, to an error of the mean, and to
the landed answer.
"""

from __future__ import annotations

import statistics
from typing import Any

from measure import medians, with_first
from peers import contenders, rates

# gamma, alpha, final time of the strong comparison, and finest step divided by gamma.
# The final times are whole numbers of every step below.
SETTINGS = ((0.02, 0.1, 100.0, 1 / 32), (0.1, 0.01, 40.0, 1 / 128), (0.1, 0.001, 40.0, 1 / 128))
WIDTHS = (
    50.0,
    40.0,
    25.0,
    20.0,
    12.5,
    10.0,
    8.0,
    4.0,
    2.0,
    1.0,
    1 / 2,
    1 / 4,
    1 / 8,
    1 / 16,
    1 / 32,
)
STRONG = {  # coordinates, solver, largest step divided by gamma
    "Euler in w": ("weights", "Euler", 1.0),
    "Euler, mirror": ("mirror", "Euler", 20.0),
    "predictor-corrector, mirror": ("mirror", "PredictorCorrector", 40.0),
    "Runge-Kutta-Chebyshev, mirror": ("mirror", "RungeKuttaChebyshev", 50.0),
}
SCHEME_OF = {
    "Diffrax in w, VirtualBrownianTree": "Euler in w",
    "Diffrax in w, UnsafeBrownianPath": "Euler in w",
    "lax.scan in w": "Euler in w",
    "lax.scan in w, a tile per core": "Euler in w",
    "NumPy in w, one seed": "Euler in w",
    "sgfbias, mirror": "Euler, mirror",
    "sgfbias, mirror, predictor-corrector": "predictor-corrector, mirror",
    "sgfbias, mirror, Runge-Kutta-Chebyshev": "Runge-Kutta-Chebyshev, mirror",
}


def _problem() -> tuple[Any, Any]:
    """The package in float64, and the main problem."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import sgfbias as sgf

    return sgf, sgf.SparseRegression.sample(jax.random.key(0), n=40, d=100, sparsity=5)


def _solver(sgf: Any, name: str) -> Any:
    """The solver of this name; None for Euler, the default."""
    return None if name == "Euler" else getattr(sgf, name)()


def _run(
    sgf: Any,
    problem: Any,
    gamma: float,
    alpha: float,
    width: float,
    end: float,
    *,
    seeds: int,
    solver: str,
    coordinates: str,
    **options: Any,
) -> Any:
    """Run the flow from alpha to time `end`, in steps of `width` times gamma.

    **Raises:** `ValueError` if `end` is not a whole number of steps.
    """
    flow = sgf.StochasticGradientFlow(gamma, dt=width * gamma, **options)
    network = sgf.DiagonalNetwork.init(alpha=alpha, d=problem.d)
    steps, last = round(end / (width * gamma)), sgf.Record(times=2)
    if abs(steps * width * gamma / end - 1) > 1e-9:
        raise ValueError(f"steps of {width:g} gamma do not end at {end:g}")
    chosen = _solver(sgf, solver)
    return sgf.simulate(
        flow,
        network,
        problem,
        keys=sgf.seeds(0, seeds),
        steps=steps,
        coordinates=coordinates,
        solver=chosen,
        record=last,
    )


def strong_error() -> dict:
    """Seconds to a strong RMS error of 1e-3 in beta over 64 seeds, in float64, at
    (gamma, alpha, T) = (0.02, 0.1, 100), (0.1, 0.01, 40) and (0.1, 0.001, 40). They are
    the number of steps at the width that meets 1e-3, times the cost of a step, which is
    measured side by side. Errors are measured at a ladder of widths, on one Brownian
    path per seed, against the predictor-corrector at the finest width: gamma / 32, and
    gamma / 128 at gamma = 0.1. The width is interpolated between the two rungs around
    1e-3, or extrapolated from the last two if no rung meets it.
    """
    import numpy as np

    sgf, problem = _problem()
    cost = rates("float64")
    wanted, result = 1e-3, {}
    for setting in SETTINGS:
        gamma, alpha, end, finest = setting

        def beta(width: float, coordinates: str, solver: str, setting: tuple = setting) -> Any:
            gamma, alpha, end, finest = setting
            options = {"coordinates": coordinates, "solver": solver, "brownian_dt": finest * gamma}
            return np.asarray(
                _run(sgf, problem, gamma, alpha, width, end, seeds=64, **options).final["beta"]
            )

        exact, ladders, widths = beta(finest, "mirror", "PredictorCorrector"), {}, {}
        for name, (coordinates, solver, largest) in STRONG.items():
            ladder = tuple(w for w in WIDTHS if largest >= w > finest)
            errors = [
                float(np.sqrt(np.mean(np.sum((beta(w, coordinates, solver) - exact) ** 2, axis=1))))
                for w in ladder
            ]
            errors = [e if np.isfinite(e) else float("inf") for e in errors]
            ladders[name] = dict(zip(map(str, ladder), errors, strict=True))
            widths[name] = _width_for(wanted, ladder, errors)
        seconds = {
            name: 64 * end / (gamma * widths[scheme]) / (cost[name] * 1e6)
            for name, scheme in SCHEME_OF.items()
        }
        best = min(value for name, value in seconds.items() if name.startswith("sgfbias"))
        result[f"gamma {gamma}, alpha {alpha}"] = {
            "errors_by_width_over_gamma": ladders,
            "width_over_gamma_for_1e-3": widths,
            "seconds_for_64_seeds": seconds,
            "times_ours": {name: value / best for name, value in seconds.items()},
        }
    goals = {
        "gamma 0.02, alpha 0.1": {"Diffrax in w, VirtualBrownianTree": 2000, "lax.scan in w": 100},
        "gamma 0.1, alpha 0.01": {"lax.scan in w": 30},
    }
    return {**result, "million_seed_steps_per_second": cost, "target": goals}


def _width_for(wanted: float, ladder: tuple[float, ...], errors: list[float]) -> float:
    """The step divided by gamma that meets the wanted error.

    It is interpolated by the slope between two rungs, or extrapolated from the last two
    if no rung meets the error.
    """
    import numpy as np

    good = next((k for k, error in enumerate(errors) if error <= wanted), None)
    if good == 0:
        return ladder[0]
    upper = len(errors) - 2 if good is None else good - 1
    slope = np.log(errors[upper] / errors[upper + 1]) / np.log(ladder[upper] / ladder[upper + 1])
    slope = slope if np.isfinite(slope) else 0.5
    return float(
        min(ladder[upper + 1] * (wanted / errors[upper + 1]) ** (1 / slope), ladder[upper])
    )


def weak_error() -> dict:
    """Errors of means over 2,048 independent seeds by the width of a step, in float64,
    against the predictor-corrector at an eighth of gamma on other seeds. The means are
    those of the landed validation error and of the whole loss integral, after runs of
    60 units of time (120 at gamma = 0.02) and landing. Each has the standard error of
    the difference. The seconds are those of 256 seeds at that width, landing included,
    without compilation; the schemes take turns.
    """
    import jax
    import numpy as np

    sgf, problem = _problem()
    schemes = {
        "Euler": ("Euler", {}),
        "Euler, two-point": ("Euler", {"increments": "two-point"}),
        "predictor-corrector": ("PredictorCorrector", {}),
        "predictor-corrector, two-point": ("PredictorCorrector", {"increments": "two-point"}),
        "Runge-Kutta-Chebyshev, two-point": ("RungeKuttaChebyshev", {"increments": "two-point"}),
    }
    result = {}
    for gamma, alpha, *_ in SETTINGS:
        end = 60.0 if gamma > 0.05 else 120.0

        def landed(
            width: float,
            solver: str,
            options: dict,
            seeds: int,
            start: int = 0,
            gamma: float = gamma,
            alpha: float = alpha,
            end: float = end,
        ) -> dict:
            flow = sgf.StochasticGradientFlow(gamma, dt=width * gamma, **options)
            network = sgf.DiagonalNetwork.init(alpha=alpha, d=problem.d)
            runs = sgf.simulate(
                flow,
                network,
                problem,
                keys=sgf.seeds(start, start + seeds),
                steps=round(end / (width * gamma)),
                solver=_solver(sgf, solver),
                record=sgf.Record(times=2),
            )
            limit = sgf.land(runs)
            values = {
                "validation_error": limit.validation_error,
                "loss_integral": runs.final["loss_integral"] + limit.remaining,
            }
            return jax.tree.map(np.asarray, {**values, "diverged": runs.diverged})

        def mean(values: Any, good: Any) -> tuple[float, float]:
            kept = values[good & np.isfinite(values)]
            return float(np.mean(kept)), float(np.std(kept) / np.sqrt(max(len(kept), 1)))

        fine = landed(1 / 8, "PredictorCorrector", {}, 2048, 1_000_000)
        exact = {
            name: mean(fine[name], ~fine["diverged"])
            for name in ("validation_error", "loss_integral")
        }
        rows: dict[str, dict] = {}
        for scheme, (solver, options) in schemes.items():
            for width in (8.0, 4.0, 2.0, 1.0, 0.5):
                made = landed(width, solver, options, 2048)
                row: dict[str, Any] = {"diverged": float(np.mean(made["diverged"]))}
                for name, (value, spread) in exact.items():
                    got, error = mean(made[name], ~made["diverged"])
                    row[name] = {
                        "relative_error": got / value - 1,
                        "standard_error": float(np.hypot(spread, error) / value),
                    }
                rows[f"{scheme}, {width:g} gamma"] = row
        timed = {
            name: (lambda w=width, s=solver, o=options: landed(w, s, o, 256))
            for scheme, (solver, options) in schemes.items()
            for width in (8.0, 4.0, 2.0, 1.0, 0.5)
            for name in [f"{scheme}, {width:g} gamma"]
        }
        for name, seconds in medians(timed, 3).items():
            rows[name]["seconds_for_256_seeds"] = seconds
        good = [
            (row["seconds_for_256_seeds"], name)
            for name, row in rows.items()
            if row["diverged"] == 0
            and all(
                abs(row[q]["relative_error"]) + 2 * row[q]["standard_error"] < 0.02
                for q in ("validation_error", "loss_integral")
            )
        ]
        seconds, name = min(good, default=(float("nan"), "none"))
        result[f"gamma {gamma}, alpha {alpha}"] = {
            "fine": exact,
            "rows": rows,
            "first_within_2_percent": {"name": name, "seconds": seconds},
        }
    return {**result, "target": {"seconds": 1}}


def landed_answer() -> dict:
    """Seconds without compilation until the answers of 256 seeds at alpha = 0.01 and
    gamma = 0.1 have a relative error of 1e-3: the median over seeds of |beta -
    beta_inf| / |beta_inf - beta*|. This package runs 150 to 600 steps and lands. The
    scheme of the paper, Euler in w at a tenth of gamma, is a NumPy loop over one seed
    at a time. Its number of steps comes from long runs of this package: the time at
    which the iterate is within 1e-3, interpolated between recorded times, or
    extrapolated by the decay of the last half beyond 1e6 steps. Its time is measured on
    2,000 steps. All take turns, and medians of 15 are kept.
    """
    import numpy as np

    sgf, problem = _problem()
    gamma, alpha, count = 0.1, 0.01, 64
    network, flow = (
        sgf.DiagonalNetwork.init(alpha=alpha, d=problem.d),
        sgf.StochasticGradientFlow(gamma),
    )
    limit, scale, needed = _iterations(flow, network, problem, count)

    def answer(steps: int) -> Any:
        runs = sgf.simulate(
            flow, network, problem, keys=sgf.seeds(0, 256), steps=steps, record=sgf.Record(times=2)
        )
        return sgf.land(runs).beta

    ours = {
        str(steps): (lambda steps=steps: answer(steps)) for steps in (150, 175, 200, 225, 300, 600)
    }
    loop, _, looped = contenders("float64")["NumPy in w, one seed"]
    spans = with_first({**ours, "loop": loop}, 15)
    rate = looped / statistics.median(spans.pop("loop")[1:])
    rows = {
        steps: {
            "relative_error": float(
                np.median(np.linalg.norm(np.asarray(run())[:count] - limit, axis=1) / scale)
            ),
            "first_call_seconds": spans[steps][0],
            "warm_seconds": statistics.median(spans[steps][1:]),
        }
        for steps, run in ours.items()
    }
    seconds = 256 * needed["value"] * 10 / rate
    good = [row["warm_seconds"] for row in rows.values() if row["relative_error"] <= 1e-3]
    return {
        "ours_by_steps": rows,
        "iterate_relative_error": needed.pop("errors"),
        "iterations_for_1e-3": needed,
        "numpy_loop_steps_per_second": rate,
        "numpy_loop_seconds": seconds,
        "times_ours": seconds / min(good) if good else None,
        "target": {"times_ours": 100_000},
        "sgd": {str(alpha): _landed_sgd(sgf, problem, alpha) for alpha in (0.01, 0.001)},
    }


def _iterations(dynamics: Any, network: Any, problem: Any, count: int) -> tuple[Any, Any, dict]:
    """The limits of `count` seeds, their distances from beta*, and the number of
    iterations after which the median iterate has a relative error of 1e-3: interpolated
    between recorded times of a run of 1e6 iterations, or extrapolated by the decay of
    its last half.
    """
    import numpy as np

    import sgfbias as sgf

    gamma = float(dynamics.step_size)
    record = sgf.Record(("beta",), gamma * np.unique(np.geomspace(100, 1_000_000, 81).astype(int)))
    long = sgf.simulate(
        dynamics, network, problem, keys=sgf.seeds(0, count), steps=1_000_000, record=record
    )
    limit = np.asarray(sgf.land(long).beta)
    scale = np.linalg.norm(limit - np.asarray(problem.beta_star), axis=1)
    times = np.asarray(long.times) / gamma
    errors = np.median(
        np.linalg.norm(np.asarray(long["beta"]) - limit[:, None], axis=2) / scale[:, None], axis=0
    )
    below = np.flatnonzero(errors <= 1e-3)
    if len(below):
        pair = slice(below[0] - 1, below[0] + 1)
        needed, how = float(np.interp(np.log(1e3), -np.log(errors[pair]), times[pair])), "measured"
    else:
        half = times >= times[-1] / 2
        half[-2:] = True
        slope = np.polyfit(times[half], np.log(errors[half]), 1)[0]
        needed, how = (
            float(times[-1] + np.log(errors[-1] / 1e-3) / -slope),
            "extrapolated exponentially, the fastest it could go",
        )
    found = dict(zip(map(str, times.tolist()), errors.tolist(), strict=True))
    return limit, scale, {"value": needed, "how": how, "errors": found}


def _landed_sgd(sgf: Any, problem: Any, alpha: float) -> dict:
    """The same for SGD with batches of one example and its own limit, at gamma = 0.05.
    Two NumPy loops run SGD itself, whose number of iterations comes
    from long runs of this package: one seed at a time, and all 256 seeds at once. Their
    times are measured on 20,000 and 500 iterations, and extrapolated.
    """
    import numpy as np

    gamma, count, seeds = 0.05, 64, 256
    network = sgf.DiagonalNetwork.init(alpha=alpha, d=problem.d)
    sgd = sgf.StochasticGradientDescent(gamma)
    limit, scale, needed = _iterations(sgd, network, problem, count)
    X, y = np.asarray(problem.X), np.asarray(problem.y)

    def one_seed() -> Any:
        plus, minus = np.full(problem.d, alpha), np.full(problem.d, alpha)
        for i in np.random.default_rng(0).integers(0, problem.n, 20_000):
            x = X[i]
            move = gamma * ((plus**2 - minus**2) @ x - y[i]) * x
            plus, minus = plus * (1 - move), minus * (1 + move)
        return plus

    def all_seeds() -> Any:
        plus, minus = (np.full((seeds, problem.d), alpha) for _ in range(2))
        for i in np.random.default_rng(0).integers(0, problem.n, (500, seeds)):
            x = X[i]
            move = gamma * (np.einsum("ij,ij->i", plus**2 - minus**2, x) - y[i])[:, None] * x
            plus, minus = plus * (1 - move), minus * (1 + move)
        return plus

    def answer(steps: int) -> Any:
        runs = sgf.simulate(
            sgd, network, problem, keys=sgf.seeds(0, seeds), steps=steps, record=sgf.Record(times=2)
        )
        return sgf.land(runs).beta

    ours = {str(k): (lambda k=k: answer(k)) for k in (200, 300, 400, 600, 1000)}
    spans = with_first({**ours, "one seed": one_seed, "all seeds": all_seeds}, 7)
    rates = {
        "one seed": 20_000 / statistics.median(spans.pop("one seed")[1:]),
        "all seeds": 500 * seeds / statistics.median(spans.pop("all seeds")[1:]),
    }
    rows = {
        steps: {
            "relative_error": float(
                np.median(np.linalg.norm(np.asarray(run())[:count] - limit, axis=1) / scale)
            ),
            "first_call_seconds": spans[steps][0],
            "warm_seconds": statistics.median(spans[steps][1:]),
        }
        for steps, run in ours.items()
    }
    good = [row["warm_seconds"] for row in rows.values() if row["relative_error"] <= 1e-3]
    seconds = {name: seeds * needed["value"] / rate for name, rate in rates.items()}
    return {
        "ours_by_steps": rows,
        "iterate_relative_error": needed.pop("errors"),
        "iterations_for_1e-3": needed,
        "numpy_loop_seed_steps_per_second": rates,
        "numpy_loop_seconds": seconds,
        "times_ours": {name: s / min(good) for name, s in seconds.items()} if good else None,
        "target": {"times_ours": 10_000},
    }
