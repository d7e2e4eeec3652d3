"""The tests that all studies share. A subclass of `StudyCase` in `tests/<system>/` has
the tests of one study, for example

    class TestSvag(StudyCase):
        study = "svag"
        small = "--seeds 64"
        mutations = {
            "a gap that stays": (
                "svag_gap",
                lambda v: v * 0 + v[:1],
                "falls as 1/l",
            )
        }
        refusals = [({"time": 0.1}, "time must be a whole number of step_size")]

        @classmethod
        def make(cls):
            # A made-up dataset on which all claims that must hold do hold. Without this
            # method it is the dataset of the study at test size.
            return ...
"""

import dataclasses

import golden
import pytest
from helpers import failed

from sgfbias.ensemble.outcome import as_columns
from sgfbias.ensemble.sweep import as_cell
from sgfbias.study import robustness, study_named
from sgfbias.study.claim import Claim, broken

LONG = 6  # A table of more claims than this marks the main ones.


def small_run(study):
    """The dataset of a study at test size. The study is run once in each process."""
    return golden.small_run(study)[0]


def mutate(dataset, mutation):
    """A changed copy of a dataset.

    A mutation (name, change, words) changes the values of one variable. A mutation
    (change, words) changes the whole dataset.
    """
    copy = dataset.copy(deep=True)
    if len(mutation) == 2:
        return mutation[0](copy)
    name, change, _ = mutation
    copy[name].values = change(copy[name].values)
    return copy


class StudyCase:
    """The tests that every study has. A subclass sets the attributes below, and may
    define `make`.
    """

    study: str
    # The test size of the study, as options of the command line. A run at this size
    # should take about 20 CPU seconds.
    small: str
    # Description of a change -> (variable, change, words of the statement that must
    # then fail), or (change of the dataset, words).
    mutations: dict = {}
    # (changed fields of the default config, words of the error). These test relations
    # between fields; house/test_studies.py tests the bounds of single fields.
    refusals: list = []
    # Words of claims that do not hold on the dataset of `make`.
    unmet: tuple = ()
    # The root seed on which no claim may fail at the quick size.
    draw: int = 1

    @property
    def module(self):
        return study_named(self.study)

    @classmethod
    def make(cls):
        return small_run(cls.study)

    @pytest.fixture(scope="class")
    @classmethod
    def made(cls):
        return cls.make()

    def test_what_must_hold_holds(self, made):
        rows = [
            claim
            for claim in broken(self.module.claims(made))
            if not any(words in claim.statement for words in self.unmet)
        ]
        assert rows == []

    def test_a_mutation_breaks_its_claim(self, made, mutation):
        words = self.mutations[mutation][-1]
        broke = failed(self.module, mutate(made, self.mutations[mutation]))
        assert words in broke, f"{mutation!r} broke only: {broke or 'nothing'}"

    def test_every_claim_that_must_hold_is_broken_by_some_mutation(self, made):
        """The table of mutations is complete, so every claim can fail."""
        claims = self.module.claims(made)
        standing = {
            k
            for k, claim in enumerate(claims)
            if claim.must_hold and claim.verdict != "not applicable"
        }
        for mutation in self.mutations.values():
            changed = self.module.claims(mutate(made, mutation))
            assert len(changed) == len(claims)
            standing -= {k for k in standing if changed[k].broken}
        assert [claims[k].statement for k in sorted(standing)] == []

    def test_there_is_a_negative_control(self, made):
        assert any(claim.control for claim in self.module.claims(made))

    def test_a_long_table_has_main_claims_with_a_control(self, made):
        """The command line prints five rows first, so at most five may be marked."""
        claims = self.module.claims(made)
        if len(claims) > LONG:
            marked = [claim for claim in claims if claim.main]
            assert 4 <= len(marked) <= 5, [claim.statement for claim in marked]
            assert all(claim.must_hold for claim in marked)
            assert any(claim.control for claim in marked)

    def test_the_picture_draws(self, made):
        figure = self.module.plot(made)
        assert all(
            axes.get_title() and axes.get_xlabel() and axes.get_ylabel()
            for axes in figure.axes
            if axes.has_data()
        )

    def test_what_makes_no_sense_is_refused(self):
        for change, words in self.refusals:
            with pytest.raises(ValueError, match=words):
                dataclasses.replace(self.module.Config(), **change)

    @pytest.mark.slow
    def test_the_small_run_has_the_stored_digests(self):
        expected = golden.stored(self.study)
        if expected is None:
            pytest.skip(
                f"no digests of {self.study} are stored for {golden.environment()}; compare two "
                "revisions with `python tests/golden.py parent`"
            )
        assert golden.differences(expected, golden.small_run(self.study)[1]) == []

    @classmethod
    def compared(cls):
        """Whether a small run of its own, apart from that of `options`, is compared."""
        return cls.make.__func__ is not StudyCase.make.__func__ and (
            golden.stored(cls.study) is not None
        )

    @property
    def options(self):
        """The run that slow tests judge: the small one if `make` returns it, so that it
        takes no time of its own, otherwise a quick one on another draw.
        """
        if type(self).make.__func__ is StudyCase.make.__func__:
            return self.small
        return f"--quick --root-seed {self.draw}"

    @pytest.mark.slow
    def test_the_claims_hold_in_a_run(self):
        """On a fixed draw, so that chance does not decide; `sgfbias robustness` takes
        twenty. Nothing may fail or be NaN, neither what must hold nor a control.
        """
        claims = golden.run(self.study, self.options)[1]
        rows = robustness.rows_of({0: [Claim(**claim) for claim in claims]})
        told = [
            f"{verdict}: {row.statement}: {row.reasons.get(0, '')}"
            for row in rows
            for verdict in row.verdicts.values()
            if verdict in (("fails", "nan") if row.must_hold or row.control else ("nan",))
            and not (
                self.options == self.small and any(words in row.statement for words in self.unmet)
            )
        ]
        assert told == []

    @pytest.mark.slow
    def test_a_run_has_units_and_is_a_cell_of_a_sweep(self):
        """A sweep accepts the dataset of a study, whatever its variables are called.
        Studies with their own function `cell` are exempt: they are not swept as a
        whole.
        """
        dataset, study = golden.run(self.study, self.options)[0], self.module
        assert [name for name in dataset.data_vars if not dataset[name].attrs.get("units")] == []
        seeds = (
            dataset.sizes["seed"]
            if "seeds" in {field.name for field in dataclasses.fields(study.Config)}
            else 1
        )
        if not study.by_seed:
            assert as_columns(
                as_cell(dataset, {"alpha": 0.1, "problem_seed": 0}, seeds),
                seeds,
                reserved=("alpha", "problem_seed"),
                whole=True,
            )

    # The tests that take a run on another draw.
    drawn = (test_the_claims_hold_in_a_run, test_a_run_has_units_and_is_a_cell_of_a_sweep)
