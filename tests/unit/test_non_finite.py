"""Which rank's loss was no finite number first."""

import pytest
import torch

from autoscale.non_finite import _NEVER, FirstSeen, NonFiniteLosses, compare


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_first_such_step_is_kept(value):
    losses = NonFiniteLosses(torch.device("cpu"))
    for step, loss in enumerate([2.5, 0.0, value, 1.0, value], start=1):
        losses.see(torch.tensor(loss), step)
    assert int(losses._first) == 3


def test_finite_losses_leave_no_trace():
    losses = NonFiniteLosses(torch.device("cpu"))
    losses.see(torch.tensor(1e38), 1)
    assert compare([(int(losses._first), "w1")]) is None


def test_the_ranks_that_had_it_first_are_named_with_their_hosts():
    found = [(8, "w1"), (7, "w1"), (_NEVER, "w2"), (7, "w2")]
    assert compare(found) == FirstSeen(ranks=("rank 1 on w1", "rank 3 on w2"), step=7)
