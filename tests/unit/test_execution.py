import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscale.execution import micro_batch_size


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 64))
def test_the_micro_batch_divides_each_ranks_share_and_is_the_largest(share, ranks, most):
    size = micro_batch_size(share * ranks, ranks, most)
    assert share % size == 0
    assert size <= most
    assert not [other for other in range(size + 1, min(most, share) + 1) if share % other == 0]


def test_ranks_must_divide_the_batch():
    with pytest.raises(ValueError, match="a batch of 8 sequences cannot be shared by 3 ranks"):
        micro_batch_size(8, 3, 4)
