"""What DiLoCo is to a run, what it refuses before compute, and the bytes that it counts."""

import pytest

from autoscale.config import load_config
from autoscale.execution import require_equal_groups
from autoscale.mixture import Mixture
from autoscale.traffic import StepTraffic, all_reduce, gather
from tests.unit.fake_experiment import FOUR, FakeExperiment
from tests.unit.test_config import SMALL

DILOCO = {"groups": 2, "inner_steps": 30, "outer_lr": 0.7, "outer_momentum": 0.9}


def targets(folder, diloco):
    experiment = FakeExperiment(folder, tables={"train": diloco}).experiment
    return experiment, experiment.targets({"uniform": Mixture.uniform(FOUR)})


def test_it_is_part_of_what_a_target_run_is_and_of_no_probe(tmp_path):
    plain, plain_targets = targets(tmp_path / "plain", {})
    apart, apart_targets = targets(tmp_path / "apart", {"diloco": {"groups": 2}})
    assert [target.spec.diloco for target in plain_targets] == [{}] * len(plain_targets)
    assert [target.spec.diloco for target in apart_targets] == [DILOCO] * len(apart_targets)
    assert not {target.spec.identity for target in plain_targets} & {
        target.spec.identity for target in apart_targets
    }
    assert [probe.spec.identity for probe in apart.probes()] == [
        probe.spec.identity for probe in plain.probes()
    ]


@pytest.mark.parametrize(
    "changed", [{"groups": 4}, {"inner_steps": 31}, {"outer_lr": 0.8}, {"outer_momentum": 0.0}]
)
def test_each_of_its_settings_changes_the_run(tmp_path, changed):
    _, (one, *_) = targets(tmp_path / "one", {"diloco": DILOCO})
    _, (other, *_) = targets(tmp_path / "other", {"diloco": DILOCO | changed})
    assert one.spec.identity != other.spec.identity


def test_groups_that_cannot_share_a_batch_are_refused(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    assert load_config(path, ["train.diloco.groups=4"]).train.diloco.groups == 4
    message = (
        "train.diloco.groups is 3, and a batch of 8 sequences cannot be cut into 3 equal shares; "
        r"make trainer.global_batch_tokens a multiple of 192 \(data.sequence_length x groups\)"
    )
    with pytest.raises(ValueError, match=message):
        load_config(path, ["train.diloco.groups=3"])
    # The batch of the target is what counts.
    budget = "train.budget={ tokens = '400K', global_batch_tokens = 192 }"
    load_config(path, ["train.diloco.groups=3", budget])


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("groups=1", "groups"), ("inner_steps=0", "inner_steps"), ("outer_lr=0", "outer_lr"),
        ("outer_momentum=1", "outer_momentum"),
    ],
)  # fmt: skip
def test_settings_without_a_meaning_are_refused(tmp_path, override, found):
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    with pytest.raises(ValueError, match=rf"train\.diloco\.{found}"):
        load_config(path, ["train.diloco.groups=2", f"train.diloco.{override}"])


def test_ranks_that_cannot_form_the_groups_are_refused():
    require_equal_groups(2, 4)
    with pytest.raises(
        ValueError, match="groups is 2, and 3 ranks cannot form 2 equal groups; train on a multiple"
    ):
        require_equal_groups(2, 3)
    with pytest.raises(ValueError, match="groups is 2, and 1 rank cannot"):
        require_equal_groups(2, 1)


def test_a_ring_sends_what_its_steps_send():
    """An all-reduce is n - 1 steps of reducing and n - 1 of gathering, each of a share of 1/n."""
    for ranks in (1, 2, 4, 7):
        steps = [100 / ranks] * (ranks - 1)
        assert gather(100, ranks) == pytest.approx(sum(steps))
        assert all_reduce(100, ranks) == pytest.approx(2 * sum(steps))


@pytest.mark.parametrize(
    ("stage", "expected"), [(0, 400 + 0), (1, 400 + 100), (2, 3 * 400 + 100), (3, 3 * (200 + 200))]
)
def test_bytes_of_a_step_over_two_ranks(stage, expected):
    """A hundred parameters, in bf16, with fp32 gradients, in three micro-batches."""
    traffic = StepTraffic(
        parameters=100, parameter_bytes=2, gradient_bytes=4, zero_stage=stage, micro_batches=3
    )
    assert traffic.sent(2) == expected
    assert traffic.sent(1) == 0
