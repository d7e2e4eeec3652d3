"""The claims of the kernel-to-rich study, computed from its dataset alone."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.kernel_to_rich import W20, Config
from sgfbias.diagonal.theory.limits import (
    largest_deviation,
    log_alpha_of,
    order_of,
    worst_excess,
    worst_excess_next,
)
from sgfbias.study import Claim, claim, control, not_applicable
from sgfbias.study.statistics import listed, log_slope, span

DEPTHS = (
    f"{W20}, theorem 3 and figure 3: alpha must be exponentially small at depth 2, polynomially "
    "small above; constants derived from h, see theory/limits.py"
)
HERE = "derived from h; see theory/limits.py"
# Squared errors below this are the solver's.
FLOOR = 1e-18
# The excess at depth 2 is a sum of powers of alpha, one for each feature off the
# support. The constants of all others together are taken to be at most this many times
# that of the leading power.
FACTOR = 10.0
# The solver's error in a local exponent: its error of 1e-11 in an excess of 1e-8 or
# more, divided by log 10, and doubled by the extrapolation.
SOLVER = 1e-3


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """The claims: both limits have the predicted rates at every depth, the transition
    between them is monotone, and simulated flows end on the program's solutions.
    """
    return [
        *(_worst(ds, p) for p in config.depths),
        *(_crossed(ds, p) for p in config.depths),
        *(_fixed(ds, p) for p in config.depths),
        *(_kernel(ds, p) for p in config.depths),
        *(_sufficient(ds, end) for end in ("rich", "kernel")),
        _monotone(ds),
        _risk(ds),
        *(_flow(ds, p) for p in config.depths),
        _other_depth(ds, config.depths[1:]),
        _potential(ds),
        _clock(ds),
    ]


def _at(ds: xr.Dataset, name: str, depth: int) -> np.ndarray:
    return ds[name].sel(depth=depth).values


def _worst(ds: xr.Dataset, depth: int) -> Claim:
    """The claim that the worst excess l1 norm has the predicted leading order with its
    constant, and that the remainder is of the next order.
    """
    order, (constant, _) = ds["order"].values, worst_excess(depth)
    ratio = _at(ds, "worst_excess", depth) / (constant * order)
    # At depth 2 the next term is known too.
    if depth == 2:
        expected, power, much, following = (
            2,
            "1/(2 ln(1/alpha))",
            "exponentially",
            worst_excess_next(),
        )
        second = (
            f"; with the next term, {following:.3f} ({power})^2, the remainder is of third order"
        )
    else:
        expected, power, much, following, second = (
            1,
            f"alpha^{depth - 2}",
            "only polynomially",
            0.0,
            "",
        )
    slope = log_slope(order[-2:], (ratio - 1 - following / constant * order)[-2:])
    return claim(
        f"Depth {depth}: over all problems the worst excess l1 norm is of order {power}, so that "
        f"{much} small alpha is needed",
        DEPTHS,
        predicted=f"excess {constant:.4f} {power} on the worst problem of two features{second}",
        measured=f"measured over predicted excess {ratio[0]:.4f} to {ratio[-1]:.5f} as {power} "
        f"falls from {order[0]:.0e} to {order[-1]:.0e}; the remainder falls with slope "
        f"{slope:.3f} between the last two",
        tolerance=f"slope within 0.05 of {expected}, and last ratio within 2 {power} of 1",
        holds=abs(slope - expected) < 0.05 and abs(ratio[-1] - 1) < 2 * order[-1],
        main=depth <= 3,
    )


def _crossed(ds: xr.Dataset, depth: int) -> Claim:
    excess, order = _at(ds, "worst_excess", depth), ds["order"].values
    half, off = excess.size // 2, {}
    for p in map(int, ds["depth"].values):
        # The order of excess of depth p at the alphas of this depth.
        law = order_of(log_alpha_of(order, depth), p)
        scale = np.mean(np.log(excess[:half] / law[:half]))
        off[p] = float(
            np.max(np.abs(np.log(excess[half:]) - scale - np.log(np.maximum(law[half:], 1e-300))))
        )
    return control(
        f"at depth {depth} the orders of the other depths, scaled to fit the larger alphas, do "
        "not fit the smaller alphas",
        DEPTHS,
        predicted=f"only the order of depth {depth} fits both halves of the alphas",
        measured="largest |log(measured / fitted)| on the smaller alphas: "
        + ", ".join(f"{value:.3g} by the order of depth {p}" for p, value in off.items()),
        tolerance="own depth below 0.2 (twice the largest order fitted), all others above ln 3",
        holds=off[depth] < 2 * order[0]
        and min(value for p, value in off.items() if p != depth) > np.log(3),
        main=depth == 2,
        reason="these alphas do not distinguish the orders of the depths",
    )


def _fixed(ds: xr.Dataset, depth: int) -> Claim:
    certificate, target = ds["certificate"].values, np.log(ds["target"].values)
    with np.errstate(invalid="ignore", divide="ignore"):
        local = np.diff(np.log(_at(ds, "rich_excess", depth)), axis=1) / np.diff(target)
    if depth == 2:
        falls = "faster, as a power of alpha that its dual certificate c determines"
        exponent = f"2 (1 - max |c|), {span(2 * (1 - certificate), '.2f')} here"
        allowed = largest_deviation(np.exp(target[-2:].mean()), FACTOR)
        found, bound = local[:, -1], np.full(len(local), allowed)
        tolerance = (
            f"ratio at the smallest alphas differs from 1 by at most W({FACTOR:g}/e) / "
            f"ln(1/alpha^k) = {allowed:.3f}, the most that a second power of alpha with "
            f"{FACTOR:g} times the constant can add, whatever its exponent"
        )
        words = ""
    else:
        falls, exponent = f"as alpha^{depth}", f"{depth} on every problem"
        # The error of a local exponent is of order alpha^{p-2}, which falls by this
        # factor from each pair of alphas to the next.
        factor = np.exp((target[1] - target[0]) * (depth - 2) / depth)
        limit = (local[:, 1:] - factor * local[:, :-1]) / (1 - factor)
        found, bound = (
            limit[:, -1],
            np.maximum(np.abs(np.diff(limit[:, -2:], axis=1)[:, 0]), SOLVER),
        )
        tolerance = (
            f"the limit differs from 1 by at most its change since the last but one pair of "
            f"alphas, or {SOLVER:g}, the error of the solver"
        )
        words = (
            f"; with the correction of order alpha^{depth - 2} taken out, the limit is "
            f"{span(found, '.4f')}, and its last change at most "
            f"{np.abs(np.diff(limit[:, -2:], axis=1)).max():.1e}"
        )
    return claim(
        f"Depth {depth}: on any one problem the excess l1 norm falls {falls}",
        HERE,
        predicted=f"exponent {exponent}",
        measured=f"measured over predicted exponent {span(local[:, -1], '.4f')} at the smallest "
        f"alphas, {span(local[:, 0], '.3f')} at the largest{words}; "
        f"{int(ds['passed_over'])} problems without a clearly unique minimum l1 solution were "
        "drawn again",
        tolerance=tolerance,
        holds=np.all(np.abs(found - 1) < bound),
    )


def _kernel(ds: xr.Dataset, depth: int) -> Claim:
    scale, gap, size = (
        ds["scale"].values,
        _at(ds, "kernel_gap", depth),
        _at(ds, "kernel_distance", depth),
    )
    slopes = log_slope(scale, gap)
    return claim(
        f"Depth {depth}: at large alpha the solution tends to the minimum l2 solution, and its "
        "first correction is the predicted vector v",
        f"{W20}, theorems 1 and 3 for the limit; {HERE} for the rate",
        predicted=f"distance alpha^-{2 * depth} |v|; the remainder relative to it also falls as "
        f"alpha^-{2 * depth}, slope -2 in alpha^{depth}",
        measured=f"at the largest alpha the relative distance is {span(size[:, -1], '.2e')} and "
        f"the relative remainder {span(gap[:, -1], '.2e')}; slope {span(slopes, '.3f')}",
        tolerance="slope within 0.05 of -2 on every draw, and remainder below 1/scale^2 at the "
        "largest alpha, where scale = alpha^p / max |beta_l2|",
        holds=np.all(np.abs(slopes + 2) < 0.05) and np.all(gap[:, -1] < 1 / scale[-1] ** 2),
        main=depth == 2,
    )


def _sufficient(ds: xr.Dataset, end: str) -> Claim:
    eps, excess, bound = (
        ds["eps"].values,
        ds[f"bound_{end}_excess"].values,
        ds[f"bound_{end}_log_alpha"].values,
    )
    norm, side = ("l1 norm", "at most") if end == "rich" else ("squared l2 norm", "at least")
    return claim(
        f"The paper's sufficient alpha suffices: the {norm} is at most 1 + eps times the least",
        f"{W20}, theorem 2",
        predicted=f"excess at most eps = {listed(eps, 'g')} if alpha is {side} the paper's bound",
        measured=f"at the bound, log alpha {span(bound, '.1f')}, the largest excess is "
        f"{listed(excess.max(axis=0), '.1e')}",
        tolerance="excess at most eps, and not negative, on every draw",
        holds=np.all(excess <= eps) and np.all(excess >= -1e-9),
    )


def _monotone(ds: xr.Dataset) -> Claim:
    l1, l2, slope = ds["l1"].values, ds["l2"].values, ds["l1_slope"].values
    wrong1 = int(np.sum(np.diff(l1, axis=-1) < -1e-9 * l1[..., 1:]))
    wrong2 = int(np.sum(np.diff(l2, axis=-1) > 1e-9 * l2[..., 1:]))
    return claim(
        "The transition is monotone: from large to small alpha the l1 norm falls and the l2 norm "
        "rises, at every depth and on every draw",
        f"{W20}, figure 1",
        predicted="no step between neighbouring alphas in the other direction",
        measured=f"of {l1[..., 1:].size} steps the l1 norm makes {wrong1} in the other direction, "
        f"the l2 norm {wrong2}; at depth 2 d |beta|_1 / d log alpha is at least {slope.min():.1e}",
        tolerance="1e-9 relative, the error of the solver",
        holds=wrong1 == 0
        and wrong2 == 0
        and slope.min() > -1e-9
        and np.isfinite(l1).all()
        and np.isfinite(l2).all(),
        main=True,
        reason="theory makes sum sqrt(beta^2 + 4 alpha^4) monotone, but not the norms themselves",
    )


def _risk(ds: xr.Dataset) -> Claim:
    alpha, clear = ds["alpha"].values, ds["recovered"].values
    error = ds["error"].values[:, clear]
    # Errors are squares, so that the solver's error of 1e-11 shows below 1e-18.
    statement = (
        "The larger alpha, the larger the error against the sparse truth, at every depth and on "
        "every draw"
    )
    origin = f"{W20}, figure 1, sparse regression"
    if clear.mean() < 0.5:
        return not_applicable(
            statement,
            origin,
            "the minimum l1 solution is the truth on fewer than half of the draws",
        )
    steps = np.diff(np.log(np.maximum(error, FLOOR)), axis=-1)[error[..., :-1] > FLOOR]
    ends = [f"{np.median(error[0, :, k]):.1e} at alpha {alpha[k]:.0e}" for k in (0, -1)]
    return claim(
        statement,
        origin,
        predicted="the error rises from every alpha to the next larger one, if minimum l1 recovers "
        "the truth",
        measured=f"it rises in {int(np.sum(steps > 0))} of {steps.size} steps; median error at "
        f"depth 2 {' and '.join(ends)}; the truth is recovered on {int(clear.sum())} of "
        f"{clear.size} draws",
        tolerance=f"no step down where the error is above {FLOOR:g}",
        holds=steps.size > 0 and np.all(steps > 0),
        reason="this is an observation, not a theorem, and some problem is an exception",
    )


def _off(beta: np.ndarray, ds: xr.Dataset, name: str, depth: int) -> np.ndarray:
    """Largest difference between `beta` (flow_alpha, feature) and the variable `name`,
    divided by the largest coordinate of the program's solution, (flow_alpha,).
    """
    return np.abs(beta - _at(ds, name, depth)).max(axis=-1) / np.abs(
        _at(ds, "flow_predicted", depth)
    ).max(axis=-1)


def _flow(ds: xr.Dataset, depth: int) -> Claim:
    simulated, tolerance = _at(ds, "flow_beta", depth), ds["tolerance"].values
    gap = np.array(
        [_off(simulated[:, k], ds, "flow_predicted", depth).max() for k in range(tolerance.size)]
    )
    return claim(
        f"Depth {depth}: gradient flow simulated in the weights ends on the program's solution, "
        "coordinate by coordinate",
        f"{W20}, theorems 1 and 3",
        predicted="no difference beyond the error of the solver",
        measured="; ".join(
            f"largest difference {off:.1e} at rtol {t:.0e}"
            for off, t in zip(gap, tolerance, strict=True)
        )
        + f", relative to the largest coordinate (alpha {listed(ds['flow_alpha'], 'g')})",
        tolerance="below 10 rtol times the largest coordinate",
        holds=np.all(gap < 10 * tolerance),
    )


def _other_depth(ds: xr.Dataset, deeper: tuple[int, ...]) -> Claim:
    """The control that a flow of depth p, started at the scale alpha^p of beta, does
    not end on the solution of the program of depth 2 at the same scale of beta.
    """
    own, other = (
        [_off(_at(ds, "flow_beta", p)[:, -1], ds, name, p).max() for p in deeper]
        for name in ("flow_predicted", "flow_as_two")
    )
    return control(
        "the deeper flows do not end on the solution of depth 2, even from the same alpha^p",
        f"{W20}, section 4",
        predicted="another depth has another potential, which selects another solution",
        measured="largest relative difference "
        + "; ".join(
            f"at depth {p} {b:.1e} from the solution of depth 2, {a:.1e} from its own"
            for p, a, b in zip(deeper, own, other, strict=True)
        ),
        tolerance="at some alpha above 0.01 from the solution of depth 2, and 1,000 times the "
        "difference from its own",
        holds=all(b > max(0.01, 1e3 * a) for a, b in zip(own, other, strict=True)),
    )


def _potential(ds: xr.Dataset) -> Claim:
    theirs, ours = (float(v) for v in ds["convention_potential"].values)
    return claim(
        "The paper's potential Q_alpha is 4 phi_alpha + 2 sum alpha^2, at the same alpha",
        f"{W20}, equation of theorem 1, by quadrature",
        predicted=f"Q_alpha = {theirs:.10f}",
        measured=f"4 phi_alpha + 2 sum alpha^2 = {ours:.10f}",
        tolerance="1e-9 relative",
        holds=abs(ours / theirs - 1) < 1e-9,
    )


def _clock(ds: xr.Dataset) -> Claim:
    ours, theirs, slow = ds["convention_beta"].values
    same, late = (np.abs(beta - ours).max() / np.abs(ours).max() for beta in (theirs, slow))
    return claim(
        "The paper's loss, the sum of squares, gives the same path 4 n times faster, and not the "
        "same beta at the same time",
        f"{W20}, section 2",
        predicted="with the paper's loss the same beta at time t / (4 n), before convergence",
        measured=f"largest relative difference {same:.1e} at t / (4 n), {late:.1e} at t",
        tolerance="below 1e-8 at t / (4 n), and above 0.1 at t",
        holds=same < 1e-8 and late > 0.1,
    )
