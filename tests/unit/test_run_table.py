from dataclasses import replace

import numpy as np
import pytest

from autoscale.run_table import RunTable, rounding_tolerance


def table(**changes):
    """Four runs of two mixtures at two budgets."""
    fields = {
        "runs": ("r1", "r2", "r3", "r4"),
        "domains": ("web", "code"),
        "sets": ("web", "books"),
        "weights": [[0.5, 0.5], [0.25, 0.75], [0.5, 0.5], [0.25, 0.75]],
        "tokens": [1e6, 1e6, 2e6, 2e6],
        "losses": [[3.0, 4.0], [3.2, 4.2], [2.8, 3.8], [3.0, 4.1]],
    }
    return RunTable(**(fields | changes))


def replicates(*, seeds=(0, 1, 2, 0, 1), losses=(3.0, 3.2, 3.4, 4.0, 4.1)):
    return RunTable(
        runs=tuple("abcde"),
        domains=("web", "code"),
        sets=("web",),
        weights=[[0.5, 0.5]] * 3 + [[0.2, 0.8]] * 2,
        seeds=seeds,
        losses=np.reshape(losses, (5, 1)),
    )


def test_a_table_knows_its_size_and_what_varies():
    runs = table(parameters=[1e8] * 4)
    assert (runs.num_runs, runs.num_domains, runs.num_sets) == (4, 2, 2)
    assert runs.has_budgets and not runs.has_sizes
    assert not table(tokens=None).has_budgets
    assert not table(tokens=[1e6, 1e6, 1.005e6, 1e6]).has_budgets  # rounding is no second budget


def test_arrays_are_read_only_copies():
    weights = np.array([[0.5, 0.5], [0.25, 0.75], [0.5, 0.5], [0.25, 0.75]])
    runs = table(weights=weights)
    weights[0] = 0
    assert runs.weights[0].tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="read-only"):
        runs.losses[0, 0] = 1.0


def test_rounded_weights_are_normalised():
    runs = table(weights=[[0.333, 0.666], [0.25, 0.75], [0.5, 0.5], [0.25, 0.75]])
    assert runs.weights.sum(axis=1) == pytest.approx(1, abs=1e-15)
    assert runs.weights[0, 0] == pytest.approx(1 / 3)


def test_the_tolerance_covers_weights_of_three_decimals():
    rng = np.random.default_rng(0)
    for num_domains in (2, 7, 17):
        rounded = rng.dirichlet(np.full(num_domains, 0.3), 2000).round(3)
        assert np.abs(rounded.sum(axis=1) - 1).max() <= rounding_tolerance(num_domains)
    assert rounding_tolerance(1000) < 0.011


def test_a_difference_of_two_weights_may_be_a_hair_below_zero():
    assert table(weights=[[1.0, -1e-17]] + [[0.5, 0.5]] * 3).weights[0, 1] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": [[0.5, 0.4]] + [[0.5, 0.5]] * 3}, "weights of run 'r1' sum to 0.9; expected"),
        ({"weights": [[50, 50]] * 4}, "percentages or token counts"),
        ({"weights": [[1.5, -0.5]] + [[0.5, 0.5]] * 3}, "'r1' has weight/code -0.5; expected"),
        ({"weights": [[np.nan, 1]] + [[0.5, 0.5]] * 3}, "'r1' has weight/web nan"),
        ({"weights": [[0.5, 0.5]]}, r"weights of 4 runs.* shape \(1, 2\); expected \(4, 2\)"),
        ({"losses": [[3.0, np.nan]] + [[3.0, 4.0]] * 3}, "'r1' has loss/books nan; expected"),
        ({"losses": [[3.0, np.inf]] + [[3.0, 4.0]] * 3}, "loss/books inf.*runs that diverged"),
        ({"losses": [[3.0, 4.0]] * 3 + [[-0.1, 4.0]]}, "'r4' has loss/web -0.1; expected"),
        ({"losses": [[3.0, 4.0]] * 3 + [[0.0, 4.0]]}, "'r4' has loss/web 0; expected"),
        ({"losses": [3.0] * 4}, r"losses of .* shape \(4,\); expected \(4, 2\)"),
        ({"tokens": [1e6, 0, 1e6, 1e6]}, "'r2' has tokens 0; expected a positive number"),
        ({"parameters": [1, 1, np.nan, 1]}, "'r3' has parameters nan"),
        ({"seeds": (1, 2)}, r"seeds of .* shape \(2,\); expected \(4,\)"),
        ({"runs": ("r1", "r2", "r1", "r4")}, "run 'r1' is named twice, as number 1 and 3"),
        ({"domains": ("web", "web")}, "domain 'web' is named twice"),
        ({"sets": ("web", "web")}, "validation set 'web' is named twice"),
        ({"domains": ("web",), "weights": [[1.0]] * 4}, r"at least 2 domain\(s\); found web"),
    ],
)
def test_what_is_wrong_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        table(**changes)


def test_a_table_without_runs_is_refused():
    with pytest.raises(ValueError, match=r"at least 1 run\(s\); found none"):
        table(runs=(), weights=np.empty((0, 2)), losses=np.empty((0, 2)), tokens=None)


def test_contradictory_copies_are_named():
    same = {"weights": [[0.5, 0.5]] * 2 + [[0.2, 0.8]] * 2, "tokens": [1e6] * 4}
    with pytest.raises(ValueError, match=r"'r1' and 'r2' contradict .*seed 7, but loss/web 3 and"):
        table(**same, seeds=(7, 7, 1, 2))
    table(**same, seeds=(7, 8, 1, 2))  # replicates
    table(**same)  # no seeds told: replicates
    losses = [[3.0, 4.0], [3.0, 4.0 + 1e-7], [2.8, 3.8], [3.0, 4.1]]
    table(**same, seeds=(7, 7, 1, 2), losses=losses)  # one run, written twice


def test_rows_are_selected_by_index_and_by_mask():
    runs = table(seeds=(0, 1, 2, 3))
    by_index = runs.select([2, 0])
    assert by_index.runs == ("r3", "r1") and by_index.seeds == (2, 0)
    assert by_index.tokens.tolist() == [2e6, 1e6]
    assert by_index.losses.tolist() == [[2.8, 3.8], [3.0, 4.0]]
    assert runs.select([False, True, True, False]).runs == ("r2", "r3")


def test_parts_join_to_the_whole():
    runs = table(seeds=(0, 1, 2, 3), parameters=[1e8, 1e8, 2e8, 2e8])
    joined = RunTable.concatenate([runs.select([0, 1]), runs.select([2, 3])])
    assert joined.runs == runs.runs and joined.seeds == runs.seeds
    for field in ("weights", "tokens", "parameters", "losses"):
        assert np.array_equal(getattr(joined, field), getattr(runs, field))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sets": ("web", "code")}, "differ in sets: web, books and web, code"),
        ({"metric": "bits_per_byte"}, "differ in metric: nats and bits_per_byte"),
        ({"tokens": None}, "one table has tokens and another has not"),
        ({}, "run 'r1' is named twice"),
    ],
)
def test_tables_that_do_not_fit_together_are_not_joined(changes, message):
    with pytest.raises(ValueError, match=message):
        RunTable.concatenate([table(), table(**changes)])


def test_mixtures_and_cells_are_numbered_in_order_of_appearance():
    assert table().mixture_groups().tolist() == [0, 1, 0, 1]
    assert table().cells().tolist() == [0, 1, 2, 3]
    assert table(tokens=None).cells().tolist() == [0, 1, 0, 1]
    assert table(tokens=None, parameters=[1, 1, 1, 2]).cells().tolist() == [0, 1, 0, 2]


def test_mixtures_are_told_apart_whatever_their_order_and_last_digit():
    rng = np.random.default_rng(1)
    mixtures = rng.dirichlet(np.ones(5), 40)
    truth = rng.integers(40, size=300)
    weights = mixtures[truth] * (1 + rng.uniform(-1e-11, 1e-11, (300, 1)))
    runs = RunTable(
        runs=tuple(map(str, range(300))),
        domains=tuple("abcde"),
        sets=(),
        weights=weights,
        losses=np.empty((300, 0)),
    )
    groups = runs.mixture_groups()
    assert np.array_equal(groups[:, None] == groups, truth[:, None] == truth)
    assert groups[0] == 0


def test_domains_that_never_varied_are_named():
    weights = [[0.5, 0.3, 0.2, 0.0], [0.6, 0.2, 0.2001, 0.0], [0.4, 0.4, 0.2, 0.0]]
    runs = table(
        runs=("r1", "r2", "r3"), domains=tuple("abcd"), weights=weights, tokens=None,
        losses=[[3.0, 4.0], [3.1, 4.1], [3.2, 4.2]],
    )  # fmt: skip
    assert runs.never_varied() == ("c", "d")
    assert table().never_varied() == ()


@pytest.mark.parametrize("seeds", [(0, 1, 2, 0, 1), None])
def test_noise_is_pooled_over_replicates(seeds):
    noise = replicates(seeds=seeds).replicate_noise()
    squares = 0.2**2 + 0.2**2 + 2 * 0.05**2
    assert noise.degrees_of_freedom == 3
    assert noise.standard_deviation == pytest.approx([np.sqrt(squares / 3)])


def test_copies_of_a_run_say_nothing_about_noise():
    noise = replicates(seeds=(0, 0, 1, 2, 3), losses=(3.0, 3.0, 3.2, 4.0, 4.1)).replicate_noise()
    assert noise.degrees_of_freedom == 2
    assert noise.standard_deviation == pytest.approx([np.sqrt((0.02 + 0.005) / 2)])
    noise = replicates(seeds=None, losses=(3.0, 3.0, 3.0, 4.0, 4.0)).replicate_noise()
    assert noise is None


def test_runs_that_all_differ_have_no_replicate_noise():
    assert table().replicate_noise() is None
    assert table(sets=(), losses=np.empty((4, 0))).replicate_noise() is None


def test_the_noise_of_many_replicates_is_that_of_the_truth():
    rng = np.random.default_rng(2)
    mixtures = np.repeat(rng.dirichlet(np.ones(3), 200), 4, axis=0)
    runs = RunTable(
        runs=tuple(map(str, range(800))),
        domains=tuple("abc"),
        sets=("a", "b"),
        weights=mixtures,
        seeds=(0, 1, 2, 3) * 200,
        losses=3 + mixtures[:, :2] + rng.normal(size=(800, 2)) * [0.01, 0.1],
    )
    noise = runs.replicate_noise()
    assert noise.degrees_of_freedom == 600
    assert noise.standard_deviation == pytest.approx([0.01, 0.1], rel=0.1)


def test_a_table_that_can_be_fitted_passes():
    table().check_for_fit()
    replicates().check_for_fit()


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (table(sets=(), losses=np.empty((4, 0))), "no losses; a fit needs at least one"),
        (table().select([0, 1]), "at least 3 runs; found 2: r1, r2"),
        (replicates().select([0, 1, 2]), "all 3 runs have the same mixture"),
        (
            replace(table(), losses=[[3.0, 4.0], [3.0, 4.2], [3.0, 3.8], [3.0, 4.1]]),
            "loss/web is 3 in all 4 runs: there is nothing to fit",
        ),
    ],
)
def test_a_table_that_no_law_can_be_fitted_to_is_refused(runs, message):
    with pytest.raises(ValueError, match=message):
        runs.check_for_fit()
