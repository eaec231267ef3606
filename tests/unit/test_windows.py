"""Windows of every form hold each label exactly once, and nothing that they should not."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from autoscale.shard_formats.registry import open_token_file
from autoscale.windows.contiguous import ContiguousWindows
from autoscale.windows.documents import Documents, documents_of
from autoscale.windows.fitting import best_fit, next_fit
from autoscale.windows.opening import open_windows
from autoscale.windows.reading import WindowReader
from tests.unit.token_data import write_data

LENGTHS = st.lists(
    st.lists(st.integers(1, 30), min_size=1, max_size=12), min_size=1, max_size=4
)  # of the documents of each shard
SEQUENCE_LENGTHS = st.integers(1, 12)
PACKED = ("whole_documents", "best_fit")


def data(factory: pytest.TempPathFactory, lengths, name="web"):
    return write_data(factory.mktemp("data"), {name: lengths})


def open_files(manifest):
    return [manifest.open_file(shard) for shard in manifest.domain("web").train]


def documents(lengths) -> list[np.ndarray]:
    """The token ids of each document, as `write_data` numbers them."""
    flat = [length for shard in lengths for length in shard]
    return np.split(np.arange(sum(flat)), np.cumsum(flat)[:-1])


def read_all(windows):
    return WindowReader(windows).read(np.arange(len(windows)))


# --- contiguous -----------------------------------------------------------------------------------


@settings(max_examples=40)
@given(lengths=LENGTHS, sequence_length=SEQUENCE_LENGTHS)
def test_contiguous_windows_tile_every_shard(tmp_path_factory, lengths, sequence_length):
    shards, first = [], 0
    for shard in lengths:
        shards.append(np.arange(first, first + sum(shard)))
        first += sum(shard)
    expected = [
        tokens[begin : begin + sequence_length + 1]
        for tokens in shards
        for begin in range(
            0, (tokens.size - 1) // sequence_length * sequence_length, sequence_length
        )
    ]
    assume(expected)
    windows = open_windows(
        data(tmp_path_factory, lengths), "web", "train", sequence_length=sequence_length
    )
    tokens, positions = read_all(windows)
    assert np.array_equal(tokens, np.stack(expected))
    assert positions is None
    assert windows.num_tokens == tokens[:, 1:].size


@settings(max_examples=40)
@given(
    lengths=LENGTHS,
    sequence_length=SEQUENCE_LENGTHS,
    share=st.floats(0.05, 0.95),
)
def test_a_share_tiles_whole_documents(tmp_path_factory, lengths, sequence_length, share):
    manifest = data(tmp_path_factory, lengths)
    files = open_files(manifest)
    everything = Documents.of_files(files)
    chosen = everything.share("web", share)
    text = np.concatenate(
        [
            files[file].tokens()[start : start + length]
            for file, start, length in zip(chosen.file, chosen.start, chosen.length, strict=True)
        ]
    )
    num_windows = (text.size - 1) // sequence_length
    assume(num_windows)
    windows = open_windows(manifest, "web", "train", sequence_length=sequence_length, share=share)
    tokens, positions = read_all(windows)
    assert len(windows) == num_windows and positions is None
    assert np.array_equal(tokens[:, :-1].ravel(), text[: num_windows * sequence_length])
    assert np.array_equal(tokens[:, -1], text[sequence_length::sequence_length][:num_windows])


# --- shares ---------------------------------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(1, 1000), min_size=1, max_size=60),
    shares=st.lists(st.floats(1e-6, 1), min_size=2, max_size=2).map(sorted),
)
def test_shares_are_nested_and_exact_to_one_document(lengths, shares):
    length = np.array(lengths)
    everything = Documents(
        file=np.zeros_like(length), start=np.cumsum(length) - length, length=length
    )
    small, large = (everything.share("web", share) for share in shares)
    assert set(small.start) <= set(large.start)
    for chosen, share in zip((small, large), shares, strict=True):
        assert np.all(np.diff(chosen.start) > 0)
        excess = chosen.length.sum() - share * length.sum()
        assert -1e-9 <= excess < chosen.length.max()


def test_a_share_depends_on_the_domain_and_is_pinned():
    # A checkpoint or a result of a probe holds only if the same documents are chosen ever after.
    length = np.full(12, 10)
    everything = Documents(file=np.zeros_like(length), start=np.arange(12) * 10, length=length)
    assert (everything.share("web", 0.4).start // 10).tolist() == [1, 3, 4, 5, 9]
    assert (everything.share("books", 0.4).start // 10).tolist() != [1, 3, 4, 5, 9]


# --- packed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", PACKED)
@settings(max_examples=40)
@given(lengths=LENGTHS, sequence_length=SEQUENCE_LENGTHS, share=st.sampled_from([0.5, 1.0]))
def test_packed_rows_predict_every_token_of_a_document_once(
    tmp_path_factory, packing, lengths, sequence_length, share
):
    assume(max(length for shard in lengths for length in shard) > 1)
    manifest = data(tmp_path_factory, lengths)
    files = open_files(manifest)
    chosen = Documents.of_files(files).share("web", share)
    assume(chosen.length.max() > 1)
    windows = open_windows(
        manifest, "web", "train", sequence_length=sequence_length, packing=packing, share=share
    )
    tokens, positions = read_all(windows)
    assert tokens.shape == positions.shape == (len(windows), sequence_length + 1)
    expected = np.concatenate(
        [
            files[file].tokens()[start + 1 : start + length]
            for file, start, length in zip(chosen.file, chosen.start, chosen.length, strict=True)
        ]
    )
    predicted = tokens[positions > 0]
    assert np.array_equal(np.sort(predicted), np.sort(expected))
    assert windows.num_tokens == predicted.size
    # What is predicted follows, in its document, the token before it in the row.
    rows, columns = np.nonzero(positions > 0)
    assert np.array_equal(tokens[rows, columns - 1], tokens[rows, columns] - 1)
    assert np.array_equal(positions[rows, columns - 1], positions[rows, columns] - 1)
    assert np.all(tokens[positions < 0] == 0)
    # Ids count up, so a document that fits is whole where its first and last id share a row.
    pieces = {(begin[0], begin.size) for begin in runs(tokens, positions)}
    for ids in documents(lengths):
        if 1 < ids.size <= sequence_length + 1 and ids[1] in expected:
            assert (ids[0], ids.size) in pieces


def runs(tokens: np.ndarray, positions: np.ndarray) -> list[np.ndarray]:
    """The pieces that a batch is made of."""
    found = []
    for row, place in zip(tokens, positions, strict=True):
        used = row[place >= 0]
        found += np.split(used, np.flatnonzero(place[place >= 0] == 0)[1:])
    return found


def test_next_fit_keeps_the_order_of_the_documents(tmp_path_factory):
    manifest = data(tmp_path_factory, [[3, 4, 2], [5, 12, 1, 3]])
    windows = open_windows(manifest, "web", "train", sequence_length=7, packing="whole_documents")
    tokens, positions = read_all(windows)
    assert tokens.tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 0],
        [7, 8, 9, 10, 11, 12, 13, 0],
        [14, 15, 16, 17, 18, 19, 20, 21],
        [21, 22, 23, 24, 25, 27, 28, 29],  # 26 is a document of one token, which has no label
    ]
    assert positions.tolist()[0] == [0, 1, 2, 0, 1, 2, 3, -1]
    assert positions.tolist()[3] == [0, 1, 2, 3, 4, 0, 1, 2]


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=200), spare=st.integers(0, 30))
def test_rows_never_hold_more_than_they_can(lengths, spare):
    lengths = np.array(lengths)
    capacity = int(lengths.max()) + spare
    in_order, best = next_fit(lengths, capacity), best_fit(lengths, capacity)
    for row in (in_order, best):
        assert np.array_equal(np.unique(row), np.arange(row.max() + 1))
        assert np.bincount(row, weights=lengths).max() <= capacity
    assert np.all(np.diff(in_order) >= 0)
    assert best.max() <= in_order.max()
    assert best.max() <= best_fit_by_one(lengths, capacity)[-1]
    # Two neighbours in order never fit into one row.
    filled = np.bincount(in_order, weights=lengths)
    first = lengths[np.unique(in_order, return_index=True)[1]]
    assert np.all(filled[:-1] + first[1:] > capacity)


def best_fit_by_one(lengths: np.ndarray, capacity: int) -> list[int]:
    """Best fit, decreasing, piece by piece: the last row that each piece makes necessary."""
    room, last = [], []
    for length in sorted(lengths.tolist(), reverse=True):
        fitting = [(left, row) for row, left in enumerate(room) if left >= length]
        if fitting:
            room[min(fitting)[1]] -= length
        else:
            room.append(capacity - length)
        last.append(len(room) - 1)
    return last


def test_best_fit_falls_back_to_the_order_where_that_needs_fewer_rows():
    lengths, capacity = np.array([3, 3, 4, 5, 2, 3]), 10
    assert best_fit_by_one(lengths, capacity)[-1] > next_fit(lengths, capacity).max()
    assert best_fit(lengths, capacity).max() == next_fit(lengths, capacity).max()


def test_best_fit_leaves_little_padding():
    lengths = np.minimum(np.random.default_rng(0).lognormal(5, 1.2, 20_000).astype(int) + 1, 1025)
    ideal = lengths.sum() / 1025
    assert best_fit(lengths, 1025).max() + 1 < 1.001 * ideal
    assert next_fit(lengths, 1025).max() + 1 > 1.05 * ideal


# --- documents of windows -------------------------------------------------------------------------


@pytest.mark.parametrize("packing", ("contiguous", *PACKED))
@settings(max_examples=30)
@given(lengths=LENGTHS, sequence_length=SEQUENCE_LENGTHS, share=st.sampled_from([0.5, 1.0]))
def test_labels_are_counted_by_document(tmp_path_factory, packing, lengths, sequence_length, share):
    manifest = data(tmp_path_factory, lengths)
    try:
        windows = open_windows(
            manifest, "web", "train", sequence_length=sequence_length, packing=packing, share=share
        )
    except ValueError:
        assume(False)
    numbers = np.arange(len(windows))[::-2]
    spans = documents_of(windows, numbers)
    counted = np.zeros((numbers.size, sum(map(len, lengths))), dtype=int)
    np.add.at(counted, (spans.window, spans.document), spans.tokens)
    document_of_token = np.repeat(
        np.arange(counted.shape[1]), [length for shard in lengths for length in shard]
    )
    tokens, positions = WindowReader(windows).read(numbers)
    for row, found in enumerate(counted):
        labels = tokens[row, 1:] if positions is None else tokens[row][positions[row] > 0]
        assert np.array_equal(np.bincount(document_of_token[labels], minlength=found.size), found)


# --- several domains ------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", ("contiguous", *PACKED))
def test_windows_of_several_domains_are_numbered_through(tmp_path, packing):
    domains = {"a": [[9, 30], [20]], "b": [[25, 3, 8]], "c": [[7] * 9]}
    manifest = write_data(tmp_path, domains)
    parts = [
        open_windows(manifest, name, "train", sequence_length=5, packing=packing, share=share)
        for name, share in (("a", 1.0), ("b", 1.0), ("c", 0.5))
    ]
    together = type(parts[0]).concatenate(parts)
    assert len(together) == sum(map(len, parts))
    assert together.num_tokens == sum(part.num_tokens for part in parts)
    alone = np.concatenate([read_all(part)[0] for part in parts])
    assert np.array_equal(read_all(together)[0], alone)


# --- errors ---------------------------------------------------------------------------------------


def test_impossible_windows_are_refused(tmp_path):
    manifest = write_data(tmp_path, {"web": [[12], [8, 12]], "dots": [[1] * 30]})

    def open_web(name="web", **changes):
        return open_windows(manifest, name, "train", **{"sequence_length": 4, **changes})

    for message, changes in [
        ("sequence_length is 0; expected at least 1", {"sequence_length": 0}),
        (
            r"sequence_length 20 needs 21 tokens in a shard; the longest of 2 has 20: shorten",
            {"sequence_length": 20},
        ),
        ("packing is 'tight'; expected 'contiguous' or 'whole_doc", {"packing": "tight"}),
        ("share of domain 'web' is 0; expected a number above 0 and at most 1", {"share": 0}),
        ("share of domain 'web' is 1.5", {"share": 1.5}),
        ("share of domain 'web' is nan", {"share": float("nan")}),
        ("no domain 'wob'; did you mean 'web'", {"name": "wob"}),
        ("no document has two tokens; prepare more", {"name": "dots", "packing": "best_fit"}),
    ]:
        with pytest.raises(ValueError, match=message):
            open_web(**changes)
    for packing in ("contiguous", *PACKED):
        windows = open_web(packing=packing)
        for outside in (-1, len(windows)):
            with pytest.raises(ValueError, match=f"window {outside} is outside the {len(windows)}"):
                WindowReader(windows).read(np.array([0, outside]))


def test_a_domain_without_shards_has_no_windows(tmp_path):
    manifest = write_data(tmp_path, {"web": [[12]]})
    domain = replace(manifest.domains[0], validation=())
    with pytest.raises(ValueError, match="'web', validation: there are no shards: prepare some"):
        open_windows(replace(manifest, domains=(domain,)), "web", "validation", sequence_length=4)


def test_documents_that_a_file_does_not_tell_are_asked_for(tmp_path):
    path = tmp_path / "tokens.bin"
    np.arange(100, dtype=np.uint16).tofile(path)
    file = open_token_file(str(path), "raw", dtype="uint16")
    windows = ContiguousWindows.of_files([file], sequence_length=9)
    assert len(windows) == 11
    for ask in (
        lambda: Documents.of_files([file]),
        lambda: documents_of(windows, np.arange(3)),
    ):
        with pytest.raises(ValueError, match=r"tokens\.bin does not say where its documents begin"):
            ask()
    known = open_token_file(str(path), "raw", dtype="uint16", end_of_text_id=59)
    assert Documents.of_files([known]).length.tolist() == [60, 40]
