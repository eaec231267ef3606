"""Losses carried from small models to large ones, on tables whose curves are known."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import least_squares

from autoscale.loss_curves import Curves
from autoscale.run_table import RunTable
from autoscale.run_table_file import read_run_table
from autoscale.size_transfer import carry_runs, fit_size_transfer
from tests.unit.synthetic_runs import DOMAINS, SETS, mixtures
from tests.unit.table_files import CommandLine, write_table

SMALL, LARGE = 10e6, 774e6
POWER = Curves(
    gain=np.array([0.7, 0.9, 0.5, 1.1]),
    small_floor=np.array([1.0, 1.3, 0.6, 1.6]),
    exponent=np.array([0.6, 1.5, 0.8, 2.0]),
    large_floor=np.array([0.9, 1.1, 1.2, 0.8]),
)
LINE = Curves(
    gain=np.array([0.6, 0.8, 0.7, 0.9]),
    small_floor=np.zeros(4),
    exponent=np.ones(4),
    large_floor=np.array([0.5, 0.2, -0.1, 0.1]),
)


def two_sizes(curves, num_pairs, *, alone=20, noise=0.0, seed=0):
    """Runs of one size, and some of their mixtures at the larger; and the large losses of all."""
    rng = np.random.default_rng(seed)
    num_small = num_pairs + alone
    small = rng.uniform(2.0, 4.0, (num_small, len(SETS)))
    truth = curves.at(small)
    large = truth + noise * rng.normal(size=truth.shape)
    weights = mixtures(num_small, seed=seed)
    table = RunTable(
        runs=[*(f"small-{n}" for n in range(num_small)), *(f"large-{n}" for n in range(num_pairs))],
        domains=DOMAINS,
        sets=SETS,
        weights=np.concatenate([weights, weights[:num_pairs]]),
        tokens=np.full(num_small + num_pairs, 1e9),
        parameters=np.repeat([SMALL, LARGE], [num_small, num_pairs]),
        seeds=[0] * (num_small + num_pairs),
        losses=np.concatenate([small, large[:num_pairs]]),
    )
    return table, truth


def carried_error(table, truth, **options):
    """The transfer, and the mean absolute error of the losses that were not measured."""
    transfer = fit_size_transfer(table, to_parameters=LARGE, **options)
    carried = carry_runs(table, transfer)
    rows = [int(name.removeprefix("small-")) for name in carried.table.runs if "small" in name]
    found = carried.table.losses[~carried.measured]
    return transfer, carried, np.abs(found - truth[rows]).mean()


def test_a_shifted_power_law_is_found_and_predicts_the_other_mixtures():
    transfer, carried, error = carried_error(*two_sizes(POWER, 12))
    assert transfer.form == "shifted_power"
    assert error < 2e-3
    assert transfer.held_out_error.max() < 5e-3
    assert carried.table.num_runs == 12 + 20
    assert set(carried.table.parameters) == {LARGE}


def test_the_grid_is_within_two_percent_of_a_local_optimiser():
    table, _ = two_sizes(POWER, 15, noise=0.02)
    transfer = fit_size_transfer(table, to_parameters=LARGE, form="shifted_power")
    small, large = transfer.pairs.small, transfer.pairs.large
    for j in range(len(SETS)):
        found = np.sum((transfer.curves.at(small)[:, j] - large[:, j]) ** 2)
        start = [values[j] for values in POWER]

        def residuals(q, j=j):
            return q[0] * np.maximum(small[:, j] - q[1], 1e-9) ** q[2] + q[3] - large[:, j]

        upper = [np.inf, 0.98 * small[:, j].min(), 4, large[:, j].min()]
        local = least_squares(residuals, start, bounds=([0, 0, 0.25, 0], upper))
        assert found <= 1.02 * 2 * local.cost


def test_a_line_is_not_made_a_curve():
    transfer, _, error = carried_error(*two_sizes(LINE, 12, noise=0.01))
    assert transfer.form == "line"
    assert error < 0.01
    np.testing.assert_allclose(transfer.curves.gain, LINE.gain, atol=0.03)


@pytest.mark.parametrize(("num_pairs", "form"), [(2, "factor"), (3, "line"), (4, "line")])
def test_few_pairs_carry_a_form_with_fewer_parameters(num_pairs, form):
    transfer, _, _ = carried_error(*two_sizes(LINE, num_pairs))
    assert transfer.form == form
    assert "shifted_power needs 5" in transfer.reason


def test_too_few_pairs_are_refused_with_how_many_are_needed():
    table, _ = two_sizes(LINE, 1)
    with pytest.raises(ValueError, match=r"1 paired run\(s\) of 1 mixture.*needs 2 paired"):
        fit_size_transfer(table, to_parameters=LARGE)
    table, _ = two_sizes(LINE, 4)
    with pytest.raises(ValueError, match=r"'shifted_power' has 4 param.*needs 5 paired mixtures"):
        fit_size_transfer(table, to_parameters=LARGE, form="shifted_power")


def test_sizes_that_are_missing_or_unclear_are_refused():
    table, _ = two_sizes(LINE, 4)
    with pytest.raises(ValueError, match=r"no run has 1e\+09 parameters.*has 1e\+07, 7.74e\+08"):
        fit_size_transfer(table, to_parameters=1e9)
    with pytest.raises(ValueError, match="expected two sizes of the table"):
        fit_size_transfer(table, to_parameters=LARGE, from_parameters=LARGE)
    with pytest.raises(ValueError, match="add a column parameters"):
        nameless = replace(table, parameters=None, seeds=None)
        fit_size_transfer(nameless, to_parameters=LARGE)
    sizes = table.parameters.copy()
    sizes[0] = 60e6
    with pytest.raises(ValueError, match="which of them to carry losses from"):
        fit_size_transfer(replace(table, parameters=sizes), to_parameters=LARGE)


def test_pairs_agree_in_mixture_tokens_and_seed_whatever_the_order():
    table, _ = two_sizes(LINE, 6)
    pairs = fit_size_transfer(table, to_parameters=LARGE).pairs
    assert (pairs.num_pairs, pairs.num_mixtures) == (6, 6)
    shuffled = table.select(np.random.default_rng(1).permutation(table.num_runs))
    again = fit_size_transfer(shuffled, to_parameters=LARGE)
    order = np.argsort(again.pairs.small[:, 0])
    expected = np.argsort(pairs.small[:, 0])
    np.testing.assert_array_equal(again.pairs.large[order], pairs.large[expected])
    tokens, seeds = table.tokens.copy(), list(table.seeds)
    tokens[-1], seeds[-2] = 2e9, 7
    fewer = fit_size_transfer(replace(table, tokens=tokens, seeds=seeds), to_parameters=LARGE)
    assert fewer.pairs.num_pairs == 4


def test_held_out_predictions_do_not_see_their_own_mixture():
    table, _ = two_sizes(POWER, 8, noise=0.02)
    before = fit_size_transfer(table, to_parameters=LARGE, form="line")
    losses = table.losses.copy()
    losses[-1] += 1.0  # the large run of one pair
    after = fit_size_transfer(replace(table, losses=losses), to_parameters=LARGE, form="line")
    changed = (after.pairs.large != before.pairs.large).any(axis=1)
    assert changed.sum() == 1
    np.testing.assert_allclose(after.held_out[changed], before.held_out[changed], rtol=1e-12)
    assert not np.allclose(after.held_out[~changed], before.held_out[~changed])


def test_ninety_percent_intervals_hold_nine_losses_in_ten():
    inside = []
    for seed in range(60):
        table, truth = two_sizes(LINE, 6, alone=10, noise=0.02, seed=seed)
        _, carried, _ = carried_error(table, truth, seed=seed, num_draws=50)
        rng = np.random.default_rng(1000 + seed)
        measured = truth[6:] + 0.02 * rng.normal(size=truth[6:].shape)  # as a run there would
        low, high = carried.low[~carried.measured], carried.high[~carried.measured]
        inside.append(((measured > low) & (measured < high)).mean())
    assert 0.85 < np.mean(inside) < 0.95


def test_runs_measured_at_the_size_are_kept_as_they_are():
    table, truth = two_sizes(LINE, 6, noise=0.05)
    _, carried, _ = carried_error(table, truth)
    assert carried.table.runs[:6] == tuple(f"large-{n}" for n in range(6))
    np.testing.assert_array_equal(carried.table.losses[:6], table.losses[-6:])
    np.testing.assert_array_equal(carried.low[:6], carried.high[:6])
    assert (carried.low[6:] < carried.high[6:]).all()
    everything = table.select([*range(6), *range(26, 32)])  # no small run without its partner
    transfer = fit_size_transfer(everything, to_parameters=LARGE)
    assert carry_runs(everything, transfer).measured.all()


def test_losses_beyond_those_of_the_pairs_are_marked():
    table, _ = two_sizes(LINE, 6)
    losses = table.losses.copy()
    losses[10] = 9.0
    table = replace(table, losses=losses)
    carried = carry_runs(table, fit_size_transfer(table, to_parameters=LARGE))
    assert carried.outside[carried.table.runs.index("small-10")].all()
    assert not carried.outside[carried.measured].any()


def test_the_command_writes_a_table_that_fit_reads(monkeypatch, capsys, tmp_path):
    autoscale = CommandLine(monkeypatch, capsys)
    table, truth = two_sizes(LINE, 6)
    path = write_table(tmp_path / "runs.csv", table)
    output = tmp_path / "carried.csv"
    options = ("--table", path, "--to-parameters", "774M", "-o", output)
    shown = autoscale.succeed("carry", *options)
    assert "Form line" in shown
    assert "20 runs carried, 6 measured" in shown
    carried = read_run_table(output)
    np.testing.assert_allclose(carried.losses[6:], truth[6:], atol=1e-6)
    with output.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["note/origin"] for row in rows] == ["measured"] * 6 + ["carried"] * 20
    for row in rows[6:]:
        assert float(row["note/low/web"]) <= float(row["loss/web"]) <= float(row["note/high/web"])
    autoscale.succeed(
        "fit", "--table", output, "--law", "etk", "--draws", "2", "-o", tmp_path / "f"
    )
    assert "needs 5 paired mixtures" in autoscale.refuse(
        "carry", "--table", write_table(tmp_path / "few.csv", two_sizes(LINE, 3)[0]),
        "--to-parameters", "774M", "--form", "shifted_power",
    )  # fmt: skip
