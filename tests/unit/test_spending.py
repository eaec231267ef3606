import pytest

from autoscale import stages
from autoscale.model_shape import model_size
from autoscale.records import read_json
from autoscale.run_folder import RunFolders
from autoscale.spending import hours_problem, left_to_do, make_ledger, watch_hours
from tests.unit.fake_experiment import FakeExperiment
from tests.unit.runs_in_progress import claim, log_steps, save_at


def limited(tmp_path, **limits) -> FakeExperiment:
    return FakeExperiment(tmp_path, tables={"limits": limits})


def ledger(fake):
    experiment = fake.experiment
    views = RunFolders(experiment.store.root).look()
    return make_ledger(fake.config, stages.planned_runs(experiment), views)


def planned_tokens(fake) -> int:
    return sum(run.spec.total_tokens for run in stages.planned_runs(fake.experiment))


def test_spent_and_left_add_up_to_what_was_planned(tmp_path):
    fake = FakeExperiment(tmp_path)
    planned = planned_tokens(fake)
    nothing = ledger(fake)
    assert (nothing.spent.tokens, nothing.left_tokens) == (0, planned)
    assert nothing.left_device_hours is None and nothing.rate is None
    fake.probe(only=3)
    experiment = fake.experiment
    spec = experiment.probes()[3].spec
    log_steps(experiment, spec, 40)
    some = ledger(fake)
    finished = sum(p.spec.total_tokens for p in experiment.probes()[:3])
    assert some.spent.tokens == finished + 40 * 1024
    assert some.left_tokens == planned - some.spent.tokens
    seconds = finished / 11_500 + 2 * 40 * 1024 / 10_000
    assert some.spent.device_hours == pytest.approx(seconds / 3600)


def test_a_run_that_nobody_trains_goes_on_from_its_checkpoint(tmp_path):
    fake = FakeExperiment(tmp_path)
    fake.probe(only=1)
    experiment = fake.experiment
    spec = experiment.probes()[1].spec
    whole = ledger(fake).left_device_hours
    second = model_size(spec.model, spec.sequence_length).flops_per_token / ledger(fake).rate
    folder = log_steps(experiment, spec, 40)
    assert ledger(fake).left_device_hours == pytest.approx(whole)
    save_at(folder, 30)
    saved = 30 * spec.tokens_per_batch * second / 3600
    assert ledger(fake).left_device_hours == pytest.approx(whole - saved)
    held = claim(folder)
    running = 40 * spec.tokens_per_batch * second / 3600
    assert ledger(fake).left_device_hours == pytest.approx(whole - running)
    held.release()


def test_runs_that_diverged_and_doubles_are_not_left(tmp_path):
    fake = FakeExperiment(tmp_path)
    fake.fail(fake.experiment.probes()[0].spec)
    runs = stages.planned_runs(fake.experiment)
    views = RunFolders(fake.experiment.store.root).look()
    assert len(left_to_do(runs, views)) == len(runs) - 1
    assert len(left_to_do(runs + runs, views)) == len(runs) - 1
    # Without a fit, runs of two mixtures look alike, and are two runs.
    stand_ins = [run for run in runs if not run.is_known]
    assert len(left_to_do(stand_ins, views)) == len(stand_ins) == 6


def test_runs_that_the_experiment_asks_for_no_more_are_spent_as_well(tmp_path):
    fake = FakeExperiment(tmp_path)
    fake.probe(only=2)
    before = ledger(fake).spent
    fake.config = fake.changed({"trainer": {"lr": 2e-3}})
    assert ledger(fake).spent == before
    assert ledger(fake).left_tokens == planned_tokens(fake)


def test_plan_refuses_more_tokens_than_the_limit(tmp_path):
    fake = FakeExperiment(tmp_path)
    planned = planned_tokens(fake)
    fake.config = fake.changed({"limits": {"max_tokens": planned}})
    assert stages.plan(fake.config).is_file()
    fake.config = fake.changed({"limits": {"max_tokens": planned - 1}})
    expected = (
        rf"limits.max_tokens is {planned - 1:_}, but 0 tokens are spent and the runs that are left "
        rf"need {planned:_}; plan fewer runs, lower .* or raise limits.max_tokens"
    )
    with pytest.raises(ValueError, match=expected):
        stages.plan(fake.config)
    fake.probe(only=2)
    spent = sum(p.spec.total_tokens for p in fake.experiment.probes()[:2])
    with pytest.raises(ValueError, match=rf"but {spent:_} tokens are spent and the"):
        stages.plan(fake.config)


def test_a_limit_of_exactly_the_plan_lets_a_killed_run_go_on(tmp_path):
    fake = FakeExperiment(tmp_path)
    fake.config = fake.changed({"limits": {"max_tokens": planned_tokens(fake)}})
    log_steps(fake.experiment, fake.experiment.probes()[0].spec, 40)
    stages.plan(fake.config)


def test_plan_refuses_more_hours_than_the_limit_once_a_rate_is_known(tmp_path):
    fake = limited(tmp_path, max_gpu_hours=0.4)
    stages.plan(fake.config)  # no rate: not known
    fake.probe(only=2)
    content = read_json(stages.plan(fake.config), "plan")
    need = content["limits"]["device_hours"] + content["limits"]["left_device_hours"]
    assert 0 < need < 0.4
    by_stage = sum(total["device_hours"] for total in content["totals"].values())
    assert content["limits"]["left_device_hours"] == pytest.approx(by_stage)
    fake.config = fake.changed({"limits": {"max_gpu_hours": 0.99 * need}})
    expected = (
        r"limits.max_gpu_hours is 0\.\d+, but 0\.00\d+ device hours are spent and the runs that "
        r"are left need about 0\.\d+ \(rate of a device: measured in 2 runs on CPU .*\); plan "
        r"fewer or shorter runs, or raise limits.max_gpu_hours"
    )
    with pytest.raises(ValueError, match=expected):
        stages.plan(fake.config)
    with pytest.raises(ValueError, match=expected):
        stages.check_limits(fake.experiment)


def test_nothing_left_is_within_any_limit(tmp_path):
    tables = {"train": {"seeds": [0], "baselines": []}, "limits": {"max_tokens": 1}}
    fake = FakeExperiment(tmp_path, tables=tables)
    fake.run()
    stages.plan(fake.config)


def test_hours_that_are_spent_stop_the_runs(tmp_path):
    fake = limited(tmp_path, max_gpu_hours=0.003)
    experiment = fake.experiment
    problem = watch_hours(fake.config.limits, RunFolders(experiment.store.root))
    spec = experiment.probes()[0].spec
    assert problem() is None
    log_steps(experiment, spec, 50, speed=10_000)  # 10.24 device seconds, of 10.8
    assert problem() is None
    log_steps(experiment, spec, 60, speed=10_000)
    expected = (
        "limits.max_gpu_hours is 0.003 and the runs have spent 0.00341 device hours; raise "
        "limits.max_gpu_hours and start again to go on"
    )
    assert problem() == expected
    with pytest.raises(ValueError, match=r"is 0\.003 and the runs have spent 0\.00341 device"):
        stages.check_limits(experiment)
    assert hours_problem(fake.changed({"limits": {}}).limits, 1e9) is None
