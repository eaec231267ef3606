"""How a batch is cut and counted by domain, and which runs may change their weights."""

import numpy as np
import pytest
import torch

from autoscale.masking import Masking
from autoscale.online import training_step
from autoscale.prefetch import DeviceBatch
from autoscale.sampler import Located
from autoscale.training_step import TrainingStep, sum_by_domain
from tests.unit.test_runs import make_spec

LENGTH = 16
DOMAIN = np.array([1, 0, 1, 1, 0, 0])


def make_batch(positions=None):
    rows = len(DOMAIN)
    tokens = torch.arange(rows * (LENGTH + 1)).view(rows, LENGTH + 1) % 50
    numbers = np.arange(rows)
    located = Located(domain=DOMAIN, epoch=np.zeros_like(numbers), window=numbers)
    return DeviceBatch(tokens=tokens, positions=positions, step=3, located=located)


def make_step(masking=None, size=2):
    return TrainingStep(None, make_spec(), micro_batch_size=size, masking=masking)


def test_micro_batches_hold_all_rows_in_order_with_their_domains():
    batch = make_batch()
    parts = make_step(size=4).parts(batch)
    assert [len(part.tokens) for part in parts] == [4, 2]
    assert torch.equal(torch.cat([part.tokens for part in parts]), batch.tokens)
    assert torch.cat([part.domain for part in parts]).tolist() == DOMAIN.tolist()
    assert all(part.positions is None and part.masks is None for part in parts)


def test_labels_of_a_row_are_counted_in_every_kind_of_row():
    [part] = make_step(size=6).parts(make_batch())
    assert make_step().row_labels(part).tolist() == [16] * 6

    places = torch.arange(LENGTH + 1).repeat(6, 1)
    places[1, 10:] = -1  # padding
    places[2, 5:] = torch.arange(LENGTH - 4)  # a second document
    [part] = make_step(size=6).parts(make_batch(places))
    assert make_step().row_labels(part).tolist() == [16, 9, 15, 16, 16, 16]

    masking = Masking(
        mask_token_id=50, vocab_size=50, sequence_length=LENGTH, domains=("a", "b"), seed=0
    )
    step = make_step(masking, size=3)
    parts = step.parts(make_batch())
    assert step.row_labels(parts[1]).tolist() == [masking.num_chosen] * 3
    masks = torch.cat([part.masks for part in parts])
    assert torch.equal(masks, torch.from_numpy(masking.training(make_batch().located)))


def test_sums_by_domain_do_not_depend_on_how_a_batch_is_cut():
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(6, generator=generator) * 300
    labels = torch.tensor([16.0, 15, 16, 3, 16, 9]).double()
    found = []
    for order in (np.arange(6), np.array([5, 2, 0, 3, 1, 4])):
        for size in (1, 4, 6):
            sums = torch.zeros(2, 3, dtype=torch.float64)
            for rows in torch.from_numpy(order).split(size):
                sum_by_domain(sums, torch.from_numpy(DOMAIN)[rows], losses[rows], labels[rows])
            found.append(sums)
    expected = [float(losses[DOMAIN == k].double().sum()) for k in range(3)]
    for sums in found:
        assert sums[0].tolist() == expected
        assert sums[1].tolist() == [40, 35, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"diloco": {"groups": 2}}, "train.diloco does not go with online method 'ado'"),
        ({"stages": ((16, 0), (8, 8))}, "train.stages does not go with online method 'ado'"),
        ({"online": {"method": "adoo"}}, "'adoo' is unknown; known are 'doremi' and 'ado'"),
    ],
)
def test_what_cannot_change_its_weights_is_refused(changes, message):
    spec = make_spec(**({"online": {"method": "ado"}} | changes))
    with pytest.raises(ValueError, match=message):
        training_step(None, spec, None, None, micro_batch_size=1, masking=None)
