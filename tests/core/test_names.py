"""Names of a user's observables live apart from the engine's, the network's, and those
of a dataset: what cannot be kept is refused before the run.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import sgfbias as sgf

PROBLEM = sgf.SparseRegression.sample(jax.random.key(0), n=4, d=6, sparsity=1)
NETWORK = sgf.DiagonalNetwork.init(alpha=0.3, d=6)


def run(observables, network=NETWORK, **options):
    return sgf.simulate(
        sgf.StochasticGradientFlow(0.05),
        network,
        PROBLEM,
        keys=sgf.seeds(0, 2),
        steps=20,
        record=sgf.Record(observables, 4),
        **options,
    )


def size(network):
    return jnp.sum(jnp.abs(network.beta)) + 1000


REFUSED = {
    "loss": "'loss' needs another name, because that is built in",
    "loss_integral": "is built in",
    "example_integral": "is the name of the loss integral of every example in to_xarray",
    "status": "is the name of the status of every seed",
    "stop_time": "is the name of the time at which a seed was stopped",
    "time": "is the name of the recorded times",
    "step": "is the name of the recorded steps",
    "key": "is the name of the keys of the seeds",
    "seed": "is the name of a dimension",
    "key_word": "is the name of a dimension",
    "final_loss": "is the name of the last 'loss'",
    "final_beta": "is the name of the last 'beta'",
    "beta": r"by the network, the problem or the dynamics; record=\{'beta': None\} records it",
    "log_alpha": "is declared by the network, the problem or the dynamics",
    "feature": "calls a dimension of '.*' so",
    "": "must be a non-empty text",
    "a/b": "must be a non-empty text without '/'",
    3: "must be a non-empty text without '/', but is 3",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_name_that_stands_for_something_else_is_refused_before_the_run(name):
    with pytest.raises(ValueError, match=REFUSED[name]):
        run({name: size})


def test_two_names_of_one_record_must_not_meet_in_the_dataset():
    with pytest.raises(ValueError, match="'final_size' needs another name.*the last 'size'"):
        run({"size": size, "final_size": size})
    with pytest.raises(ValueError, match="'own_0' needs another name.*a dimension of 'own'"):
        run({"own": lambda net: net.beta[:3], "own_0": size})


def test_status_and_stop_are_judged_by_the_training_loss():
    """An observable that is 0 throughout freezes nothing."""
    runs = run({"my_loss": lambda net: 0 * size(net)}, stop=1e-3)
    assert float(runs.final["loss"].min()) > 1e-3
    assert not np.isfinite(runs.stop_time).any()
    assert "loss 0.0" not in runs.reason(0)


def test_every_series_is_in_the_dataset_as_it_was_recorded(tmp_path):
    names = ("size", "risk", "final", "Loss", "my status", "steps")
    runs = run({name: lambda net, k=k: size(net) + k for k, name in enumerate(names)})
    dataset = runs.to_xarray()
    for k, name in enumerate(names):
        np.testing.assert_array_equal(dataset[name], runs[name])
        np.testing.assert_allclose(dataset[name], dataset["size"] + k)
        np.testing.assert_array_equal(dataset[f"final_{name}"], runs.final[name])


def test_declared_observables_are_asked_for_by_name():
    assert run({"beta": None, "loss": None})["beta"].shape == (2, 4, 6)


class Impostor(sgf.AbstractNetwork):
    """A network of a user's own that declares an observable."""

    w: jax.Array
    name: str

    def __call__(self, x):
        return self.w @ x

    def observables(self):
        return {self.name: lambda network: jnp.sum(network.w)}


@pytest.mark.parametrize("name", ["loss", "status", "final_loss"])
def test_a_network_cannot_declare_such_a_name_either(name):
    with pytest.raises(ValueError, match=f"'{name}' needs another name"):
        run(None, network=Impostor(jnp.ones(6), name))


@pytest.mark.parametrize("write", ["to_netcdf", "to_zarr"])
def test_others_can_read_the_runs_from_a_file(write, tmp_path):
    """With the default environment, in which only SciPy writes NetCDF."""
    dataset = run(None).to_xarray()
    options = {"consolidated": False} if write == "to_zarr" else {}
    getattr(dataset, write)(tmp_path / "runs", **options)
    opened = xr.open_dataset(
        tmp_path / "runs", **(options | {"engine": "zarr"} if options else options)
    ).load()
    for name in dataset.variables:
        np.testing.assert_array_equal(opened[name].values, dataset[name].values)
    words = jnp.asarray(opened["key"].values.astype(np.uint32))
    again = jax.random.wrap_key_data(words)
    assert (jax.random.key_data(again) == jax.random.key_data(sgf.seeds(0, 2))).all()
