"""Probe results as a table of runs: units, seeds and their levels, evaluations on the way."""

import math
from dataclasses import replace

import numpy as np
import pytest

from autoscale.experiment_table import probe_table
from autoscale.runs import Evaluation
from tests.unit.fake_experiment import FOUR, FakeExperiment

JOINT = {"fit": {"law": "auto"}, "project": {"projection": "auto"}}
ONE_BUDGET = {"budgets": ["80K"], "reference_seeds": 2, "runs": 5}


def finished(folder, *, probe=None, fit=None, noise=0.01, lost=()):
    """An experiment and its probe results, without those whose label contains a word of `lost`."""
    tables = {**JOINT, "probe": probe or ONE_BUDGET, "fit": {"law": "auto", **(fit or {})}}
    fake = FakeExperiment(folder, tables=tables, noise=noise)
    fake.probe()
    experiment = fake.experiment
    return experiment, [
        (planned, experiment.store.result(planned.spec))
        for planned in experiment.probes()
        if not any(word in planned.spec.label for word in lost)
    ]


def shifted(pairs, shift_by_seed):
    """The results with every loss of a seed moved."""
    moved = []
    for planned, result in pairs:
        shift = shift_by_seed.get(planned.probe.seed, 0.0)
        evaluations = tuple(
            replace(e, losses={name: loss + shift for name, loss in e.losses.items()})
            for e in result.evaluations
        )
        moved.append((planned, replace(result, evaluations=evaluations)))
    return moved


def test_rows_hold_what_runs_realised(tmp_path):
    experiment, pairs = finished(tmp_path)
    probes = probe_table(experiment, pairs)
    table = probes.table
    assert table.domains == table.sets == FOUR
    assert table.num_runs == 6 and set(table.seeds) == {0}
    by_id = {planned.spec.run_id: (planned, result) for planned, result in pairs}
    for p, name in enumerate(table.runs):
        planned, result = by_id[name]
        tokens_K = [result.tokens[domain] for domain in FOUR]
        np.testing.assert_allclose(table.weights[p] * table.tokens[p], tokens_K)
        assert table.losses[p].tolist() == [result.final_losses[domain] for domain in FOUR]
        assert table.parameters[p] == planned.parameters
    assert probes.final.all() and set(probes.budgets) == {80_000}


def test_bits_per_byte_are_nats_over_the_bytes_of_a_token(tmp_path):
    experiment, pairs = finished(tmp_path, fit={"metric": "bits_per_byte"})
    table = probe_table(experiment, pairs).table
    assert table.metric == "bits_per_byte"
    for j, name in enumerate(FOUR):
        nats = pairs[0][1].final_losses[name]
        per_byte = nats / math.log(2) / experiment.manifest.bytes_per_token(name)
        assert table.losses[0, j] == pytest.approx(per_byte)


def test_reference_runs_under_further_seeds_only_measure_the_noise(tmp_path):
    experiment, pairs = finished(tmp_path, probe={**ONE_BUDGET, "reference_seeds": 3})
    probes = probe_table(experiment, pairs)
    assert sum(planned.probe.is_reference for planned, _ in pairs) == 3
    assert probes.table.num_runs == 6
    references = [
        [result.final_losses[name] for name in FOUR]
        for planned, result in pairs
        if planned.probe.is_reference
    ]
    np.testing.assert_allclose(probes.noise.standard_deviation, np.std(references, axis=0, ddof=1))
    assert probes.noise.degrees_of_freedom == 2


def test_one_seed_measures_no_noise(tmp_path):
    experiment, pairs = finished(tmp_path, probe={**ONE_BUDGET, "reference_seeds": 1})
    assert probe_table(experiment, pairs).noise is None


@pytest.mark.parametrize("reference_seeds", [1, 2, 3])
def test_replicates_enter_the_fit_at_a_common_level(tmp_path, reference_seeds):
    probe = {**ONE_BUDGET, "reference_seeds": reference_seeds, "replicates": 2}
    experiment, pairs = finished(tmp_path, probe=probe)
    far = shifted(pairs, {1: 0.4})
    probes = probe_table(experiment, far)
    table, seeds = probes.table, np.array(probes.table.seeds)
    assert set(table.seeds) == {0, 1} and table.num_runs == 10 + min(reference_seeds, 2)
    raw = probe_table(experiment, pairs).table
    np.testing.assert_allclose(
        table.losses - table.losses.mean(axis=0), raw.losses - raw.losses.mean(axis=0), atol=1e-12
    )
    for seed in (0, 1):  # differences between mixtures under one seed stay
        rows = np.flatnonzero(seeds == seed)
        by_name = {planned.spec.run_id: result for planned, result in far}
        found = [list(by_name[table.runs[p]].final_losses.values()) for p in rows]
        np.testing.assert_allclose(
            table.losses[rows] - table.losses[rows[0]], np.array(found) - found[0], atol=1e-12
        )


def test_a_lost_run_shifts_no_level_and_loses_no_seed(tmp_path):
    """The level is that of the mixtures which all seeds have, not of those that happen to be."""
    probe = {**ONE_BUDGET, "replicates": 2}
    experiment, pairs = finished(tmp_path, probe=probe, noise=0.0)
    best = min(
        (p for p, _ in pairs if p.probe.seed == 0 and not p.probe.is_reference),
        key=lambda planned: experiment.store.result(planned.spec).final_mean_loss,
    )
    left = [pair for pair in shifted(pairs, {1: 0.4}) if pair[0].spec.label != best.spec.label]
    table = probe_table(experiment, left).table
    assert set(table.seeds) == {0, 1} and table.num_runs == 11
    groups, seeds = table.mixture_groups(), np.array(table.seeds)
    for group in np.unique(groups):
        rows = groups == group
        if len(set(seeds[rows])) == 2:
            assert np.ptp(table.losses[rows], axis=0).max() < 1e-9


def test_runs_of_different_totals_keep_their_replicates_apart(tmp_path):
    """One domain at a time every run has its own total; that is no group of its own."""
    probe = {"budgets": ["80K"], "design": "one_at_a_time", "replicates": 2, "reference_seeds": 2}
    experiment, pairs = finished(tmp_path, probe=probe, noise=0.05)
    table = probe_table(experiment, pairs).table
    assert table.num_runs == 2 * (2 * len(FOUR) + 1)
    noise = table.replicate_noise()
    assert noise.degrees_of_freedom == 2 * len(FOUR) + 1
    assert (noise.standard_deviation > 1e-4).all()


def test_trajectories_add_the_evaluations_on_the_way(tmp_path):
    probe = {"budgets": ["80K", "160K"], "reference_seeds": 2, "runs": 5}
    experiment, pairs = finished(tmp_path, probe=probe, fit={"trajectories": 0.3})
    probes = probe_table(experiment, pairs)
    table = probes.table
    fitted = [(p, r) for p, r in pairs if p.probe.seed == 0]
    assert probes.final.sum() == len(fitted) == 12
    assert table.num_runs == sum(len(result.evaluations) for _, result in fitted)
    for p, name in enumerate(table.runs):
        assert ("@" in name) == (not probes.final[p])
        assert table.tokens[p] <= probes.budgets[p]
    ends = table.select(probes.final)
    np.testing.assert_array_equal(
        ends.losses, [[r.final_losses[name] for name in FOUR] for _, r in fitted]
    )


def test_of_two_runs_that_pass_one_token_count_the_one_nearer_its_end_stays(tmp_path):
    probe = {"budgets": ["80K", "160K"], "reference_seeds": 1, "runs": 5}
    experiment, pairs = finished(tmp_path, probe=probe, fit={"trajectories": 0.3})
    half = pairs[0][1].total_tokens
    changed = []
    for planned, result in pairs:
        if planned.probe.is_reference and planned.token_budget == 160_000:
            losses = {name: loss + 0.5 for name, loss in result.final_losses.items()}
            early = Evaluation(tokens=half, losses=losses, mean_loss=sum(losses.values()) / 4)
            result = replace(result, evaluations=(early, result.evaluations[-1]))
        changed.append((planned, result))
    table = probe_table(experiment, changed).table
    [row] = [
        p for p in range(table.num_runs)
        if table.tokens[p] == half and np.ptp(table.weights[p]) < 1e-12
    ]  # fmt: skip
    assert "80K" in table.runs[row] and "@" not in table.runs[row]
    assert table.losses[row].tolist() == list(pairs[0][1].final_losses.values())


def test_trajectories_of_several_seeds_are_aligned_evaluation_by_evaluation(tmp_path):
    probe = {**ONE_BUDGET, "replicates": 2}
    fit = {"trajectories": 1.0}
    experiment, pairs = finished(tmp_path, probe=probe, fit=fit, noise=0.0)
    probes = probe_table(experiment, shifted(pairs, {1: 0.4}))
    table = probes.table
    cells = replace(table, seeds=None).cells()
    assert np.bincount(cells).min() == 2
    for cell in np.unique(cells):
        assert np.ptp(table.losses[cells == cell], axis=0).max() < 1e-9
    assert 0 < probes.final.sum() < table.num_runs


def test_probes_of_two_sizes_keep_their_sizes_and_levels(tmp_path):
    micro = {"tokens": "80K", "model": {"name": "gpt2-nano", "overrides": {"n_layer": 1}}}
    probe = {"budgets": [micro, "80K"], "reference_seeds": 2, "runs": 5, "replicates": 2}
    experiment, pairs = finished(tmp_path, probe=probe, noise=0.0)
    small = min(planned.parameters for planned, _ in pairs)
    apart = [
        (p, shifted([(p, r)], {1: 0.4 if p.parameters == small else -0.2})[0][1]) for p, r in pairs
    ]
    table = probe_table(experiment, apart).table
    assert len(set(table.parameters)) == 2 and table.has_sizes
    cells = replace(table, seeds=None).cells()
    for cell in np.unique(cells):
        assert np.ptp(table.losses[cells == cell], axis=0).max() < 1e-9
