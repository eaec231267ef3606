"""Token windows: every token but the first is predicted once, and nothing else is read."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscale.shards import IndexedShardWriter, TokenWindows


def write(prefix: Path, num_tokens: int, *, first: int = 0, dtype: str = "uint16") -> Path:
    """A shard of consecutive token ids in documents of at most seven tokens."""
    with IndexedShardWriter(prefix, dtype) as writer:
        for begin in range(0, num_tokens, 7):
            end = min(begin + 7, num_tokens)
            writer.add_document(np.arange(first + begin, first + end))
    return prefix


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    sequence_length=st.integers(1, 20),
    seed=st.integers(0, 2**32),
)
def test_windows_tile_every_shard(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], sequence_length: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    shards = [
        write(folder / f"shard-{number}", size, first=1000 * number)
        for number, size in enumerate(sizes)
    ]
    expected = [
        np.arange(begin, begin + sequence_length + 1) + 1000 * number
        for number, size in enumerate(sizes)
        for begin in range(0, (size - 1) // sequence_length * sequence_length, sequence_length)
    ]
    if not expected:
        with pytest.raises(ValueError, match="shorten the sequences"):
            TokenWindows(shards, sequence_length=sequence_length, dtype="uint16")
        return
    windows = TokenWindows(shards, sequence_length=sequence_length, dtype="uint16")
    assert len(windows) == len(expected)
    chosen = np.random.default_rng(seed).integers(0, len(windows), size=20)
    gathered = windows.gather(chosen)
    assert gathered.dtype == np.int64
    assert np.array_equal(gathered, np.stack([expected[window] for window in chosen]))


def test_token_ids_are_widened_without_a_sign(tmp_path: Path) -> None:
    with IndexedShardWriter(tmp_path / "a", "uint16") as writer:
        writer.add_document(np.array([65535, 32768, 0]))
    windows = TokenWindows([tmp_path / "a"], sequence_length=2, dtype="uint16")
    assert windows.gather(np.array([0])).tolist() == [[65535, 32768, 0]]


@pytest.mark.parametrize("num_shards", [1, 3])
def test_gather_fills_a_given_buffer(tmp_path: Path, num_shards: int) -> None:
    shards = [write(tmp_path / str(number), 50, dtype="int32") for number in range(num_shards)]
    windows = TokenWindows(shards, sequence_length=4, dtype="int32")
    buffer = np.full((6, 5), -1, dtype=np.int64)
    chosen = np.arange(6)[::-1] * len(windows) // 6
    assert windows.gather(chosen, buffer) is buffer
    assert np.array_equal(buffer, windows.gather(chosen))
    part = np.full((8, 5), -1, dtype=np.int64)
    windows.gather(chosen, part[1:7])
    assert np.array_equal(part[1:7], buffer) and np.all(part[[0, 7]] == -1)
    assert windows.gather(np.zeros(0, dtype=np.int64)).shape == (0, 5)


def test_shards_too_short_for_a_window_are_passed_over(tmp_path: Path) -> None:
    shards = [write(tmp_path / "short", 4), write(tmp_path / "long", 9, first=100)]
    windows = TokenWindows(shards, sequence_length=8, dtype="uint16")
    assert len(windows) == 1
    assert windows.gather(np.array([0])).tolist() == [list(range(100, 109))]


# --- errors ---------------------------------------------------------------------------------------


def test_a_sequence_longer_than_every_shard_is_refused(tmp_path: Path) -> None:
    shards = [write(tmp_path / "a", 12), write(tmp_path / "b", 20)]
    message = "sequence_length 20 needs 21 tokens in a shard; each of 2 shards has at most 20"
    with pytest.raises(ValueError, match=message):
        TokenWindows(shards, sequence_length=20, dtype="uint16")
    with pytest.raises(ValueError, match="a has at most 12: shorten the sequences"):
        TokenWindows(shards[:1], sequence_length=20, dtype="uint16")


def test_a_domain_without_shards_has_no_windows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there are no shards: prepare some text"):
        TokenWindows([], sequence_length=20, dtype="uint16")


def test_another_dtype_is_refused(tmp_path: Path) -> None:
    shard = write(tmp_path / "a", 12)
    with pytest.raises(ValueError, match="a holds uint16 tokens; expected int32: it belongs to"):
        TokenWindows([shard], sequence_length=2, dtype="int32")


def test_a_truncated_shard_is_refused_before_it_is_mapped(tmp_path: Path) -> None:
    shard = write(tmp_path / "a", 12)
    bin_path = shard.with_suffix(".bin")
    bin_path.write_bytes(bin_path.read_bytes()[:10])
    with pytest.raises(
        ValueError, match=r"bin has 10 bytes; a\.idx expects 24: the file is truncat"
    ):
        TokenWindows([shard], sequence_length=2, dtype="uint16")


def test_windows_and_buffers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    windows = TokenWindows([write(tmp_path / "a", 12)], sequence_length=2, dtype="uint16")
    for outside in (-1, 5):
        with pytest.raises(ValueError, match=f"window {outside} is outside the domain's 5 windows"):
            windows.gather(np.array([0, outside]))
    with pytest.raises(ValueError, match=r"windows have shape \(1, 1\); expected one row"):
        windows.gather(np.array([[0]]))
    with pytest.raises(ValueError, match=r"out is int64 of shape \(2, 3\); expected int64 of shap"):
        windows.gather(np.array([0]), np.empty((2, 3), dtype=np.int64))
    with pytest.raises(ValueError, match="out is int32 of shape"):
        windows.gather(np.array([0]), np.empty((1, 3), dtype=np.int32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sequence_length is 0; expected at least 1"):
        TokenWindows([tmp_path / "a"], sequence_length=0, dtype="uint16")
