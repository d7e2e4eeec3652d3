"""`runs.plot()`, `landed.plot()` and what notebooks show of runs."""

import jax
import numpy as np
import pytest
from helpers import network, small_problem

import sgfbias as sgf
from sgfbias.core.trajectory import Status


@pytest.fixture(scope="module")
def runs():
    flow = sgf.StochasticGradientFlow(0.05)
    keys = sgf.seeds(0, 5)
    return sgf.simulate(flow, network(), small_problem(), keys=keys, steps=60)


def test_the_curve_is_the_median_and_seeds_that_are_lost_are_left_out(runs):
    import equinox as eqx

    loss = np.array(runs["loss"])
    loss[2, 30:] = np.nan
    status = runs.status.at[2].set(int(Status.NON_FINITE))
    lost = eqx.tree_at(
        lambda r: (r.series["loss"], r.status), runs, (jax.numpy.asarray(loss), status)
    )
    figure = lost.plot("loss")
    curve, ended = figure.axes
    time, drawn = curve.lines[0].get_data()
    kept = np.median(np.delete(loss, 2, axis=0), axis=0)
    np.testing.assert_allclose(drawn, kept[np.asarray(runs.times) > 0])
    assert len(time) == len(runs.times) - 1
    assert [text.get_text() for text in ended.get_yticklabels()] == ["moving", "non-finite"]
    assert [bar.get_width() for bar in ended.patches] == [4, 1]


def test_by_default_all_series_of_one_number_are_drawn(runs):
    titles = [axes.get_title(loc="left") for axes in runs.plot().axes]
    assert titles == [
        *(name.replace("_", " ") for name in runs.series),
        "how the seeds ended",
    ]
    wide = sgf.simulate(
        sgf.GradientDescent(0.05), network(), small_problem(), steps=5, record=["beta", "loss"]
    )
    assert "beta" not in [axes.get_title(loc="left") for axes in wide.plot().axes]
    with pytest.raises(ValueError, match=r"runs\['beta'\] has shape \(\d+, 25\)"):
        wide.plot("beta")
    with pytest.raises(KeyError, match="was not recorded"):
        wide.plot("bta")


def test_limits_are_drawn_without_the_seeds_that_have_none(runs):
    import equinox as eqx

    landed = sgf.land(runs)
    features, errors, *_ = landed.plot().axes
    np.testing.assert_allclose(
        features.lines[0].get_ydata(), np.median(np.asarray(landed.beta), axis=0)
    )
    assert errors.get_xlabel() == "error"
    none = eqx.tree_at(
        lambda r: (r.beta, r.error), landed, (landed.beta * np.nan, landed.error + np.inf)
    )
    assert len(none.plot().axes[0].lines) == 0


def test_notebooks_show_a_table(runs):
    shown = runs._repr_html_()
    assert shown.startswith("<table>")
    assert "<td style='text-align:left'>5 moving</td>" in shown
    assert "5 of 5" in sgf.land(runs)._repr_html_()


def test_a_dataset_of_runs_has_a_coordinate_of_the_seeds(runs):
    dataset = runs.to_xarray()
    np.testing.assert_array_equal(dataset["seed"], np.arange(5))
    assert float(dataset["final_loss"].sel(seed=3)) == float(runs.final["loss"][3])
