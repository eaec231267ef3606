"""The token store on real files: local, behind URLs, cut and removed while they are open."""

import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscale import kernel, token_store
from autoscale.file_mapping import MOST_DESCRIPTORS
from autoscale.pieces import Pieces
from autoscale.shard_formats.registry import open_token_file
from autoscale.shard_formats.token_file import TokenFile
from autoscale.token_store import TokenStore

SIZES = {"uint8": 40, "uint16": 700, "uint32": 33, "int32": 64, "uint64": 50}
NUM_TOKENS = 4000


@pytest.fixture(params=["compiled", "numpy"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to copy."""
    if request.param == "numpy":
        monkeypatch.setattr(kernel, "compiled", None)
    elif kernel.compiled is None:
        pytest.skip("the compiled kernel was not built: the install had no C compiler")
    return str(request.param)


def write_raw(path: Path, dtype: str, *, seed: int = 0) -> np.ndarray:
    most = min(np.iinfo(dtype).max, 100_000)
    tokens = np.random.default_rng(seed).integers(0, most + 1, NUM_TOKENS).astype(dtype)
    path.write_bytes(tokens.tobytes())
    return tokens


def some_pieces(num_files: int, *, rows: int, columns: int, seed: int) -> Pieces:
    """Rows of one to three runs of random files."""
    random = np.random.default_rng(seed)
    found: list[tuple[int, int, int, int, int]] = []
    for row in range(rows):
        cuts = np.sort(random.integers(0, columns + 1, random.integers(0, 3)))
        for begin, end in zip([0, *cuts], [*cuts, columns], strict=True):
            length = int(end - begin)
            start = int(random.integers(0, NUM_TOKENS - length + 1))
            found.append((row, int(begin), int(random.integers(num_files)), start, length))
    row, column, file, start, length = np.array(found, dtype=np.int64).T.copy()
    return Pieces(row=row, column=column, file=file, start=start, length=length)


def expected(pieces: Pieces, tokens: list[np.ndarray], shape: tuple[int, int], dtype: str):
    out = np.zeros(shape, dtype=dtype)
    for row, column, file, start, length in zip(
        pieces.row, pieces.column, pieces.file, pieces.start, pieces.length, strict=True
    ):
        out[row, column : column + length] = tokens[file][start : start + length]
    return out


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "int32", "int64"])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_runs_of_every_type_go_where_they_belong(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("files")
    names = ["uint8", "uint16"] if dtype == "uint16" else list(SIZES)
    tokens = [write_raw(folder / f"{name}.npy", name, seed=seed) for name in names]
    store = TokenStore([open_token_file(f"{folder}/{name}.npy", dtype=name) for name in names])
    pieces = some_pieces(len(names), rows=5, columns=33, seed=seed)
    found = []
    for compiled in (kernel.compiled, None):
        out = np.zeros((5, 33), dtype=dtype)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernel, "compiled", compiled)
            store.copy(pieces, 0, len(pieces), out, 0)
        found.append(out)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], expected(pieces, tokens, (5, 33), dtype))


def one_piece(start: int, length: int) -> Pieces:
    row, column, file = (np.zeros(1, dtype=np.int64) for _ in range(3))
    return Pieces(
        row=row, column=column, file=file, start=np.array([start]), length=np.array([length])
    )


@pytest.fixture
def file(tmp_path: Path) -> TokenFile:
    write_raw(tmp_path / "a.npy", "uint16")
    return open_token_file(f"{tmp_path}/a.npy", dtype="uint16")


def test_a_file_that_was_cut_is_an_error_with_place_and_sizes(engine: str, file: TokenFile) -> None:
    store = TokenStore([file])
    out = np.zeros((1, 100), dtype=np.int64)
    os.truncate(file.location, 4096)
    store.copy(one_piece(0, 100), 0, 1, out, 0)  # what is left can still be read
    with pytest.raises(ValueError, match=r"a\.npy cannot be read at byte .*8000 bytes, found 4096"):
        store.copy(one_piece(3800, 100), 0, 1, out, 0)


def test_a_cut_file_is_an_error_in_a_thread_too(engine: str, file: TokenFile) -> None:
    store, errors = TokenStore([file]), []
    os.truncate(file.location, 0)

    def read() -> None:
        try:
            store.copy(one_piece(0, 100), 0, 1, np.zeros((1, 100), dtype=np.int64), 0)
        except ValueError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 4 and all("found 0" in error for error in errors)


def test_a_removed_file_is_an_error_soon(
    engine: str, file: TokenFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_store, "CHECK_EVERY_SECONDS", 0.1)
    store = TokenStore([file])
    store.copy(one_piece(0, 100), 0, 1, np.zeros((1, 100), dtype=np.int64), 0)
    os.remove(file.location)
    with pytest.raises(ValueError, match=r"a\.npy cannot be .* 8000 bytes, found no file"):
        read_for_two_seconds(store)
    with pytest.raises(ValueError, match=r"a\.npy cannot be read"):
        TokenStore([file])


def test_a_cut_inside_a_memory_page_is_an_error_soon(
    engine: str, file: TokenFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The map shows zeros there, and no signal comes."""
    monkeypatch.setattr(token_store, "CHECK_EVERY_SECONDS", 0.1)
    store = TokenStore([file])
    os.truncate(file.location, 7000)
    with pytest.raises(ValueError, match=r"at byte 7.00: expected .* 8000 bytes, found 7000"):
        read_for_two_seconds(store)
    with pytest.raises(ValueError, match="at byte 7000: expected a file of 8000 bytes, found 7000"):
        store.check()


def read_for_two_seconds(store: TokenStore) -> None:
    until = time.monotonic() + 2
    while time.monotonic() < until:
        store.copy(one_piece(3900, 100), 0, 1, np.zeros((1, 100), dtype=np.int64), 0)


def test_each_look_takes_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where looking takes long, as on a network, the files take turns."""
    monkeypatch.setattr(token_store, "CHECK_EVERY_SECONDS", 0)
    monkeypatch.setattr(token_store, "CHECK_FOR_SECONDS", 0)
    for number in range(5):
        write_raw(tmp_path / f"{number}.npy", "uint16")
    store = TokenStore(
        [open_token_file(f"{tmp_path}/{number}.npy", dtype="uint16") for number in range(5)]
    )
    os.remove(tmp_path / "3.npy")
    with pytest.raises(ValueError, match=r"3\.npy .* found no file"):
        for _ in range(5):
            store.copy(one_piece(0, 100), 0, 1, np.zeros((1, 100), dtype=np.int64), 0)


def test_more_files_than_may_be_open(engine: str, tmp_path: Path) -> None:
    """Neither maps nor reads hold a descriptor for each file."""
    tokens = [write_raw(tmp_path / f"{n}.npy", "uint16", seed=n) for n in range(200)]
    files = [open_token_file(f"{tmp_path}/{n}.npy", dtype="uint16") for n in range(200)]
    held = len(os.listdir("/proc/self/fd"))
    store = TokenStore(files)
    pieces = some_pieces(200, rows=300, columns=33, seed=1)
    out = np.zeros((300, 33), dtype=np.uint16)
    store.copy(pieces, 0, len(pieces), out, 0)
    assert len(os.listdir("/proc/self/fd")) <= held + MOST_DESCRIPTORS
    np.testing.assert_array_equal(out, expected(pieces, tokens, (300, 33), "uint16"))
    del store
    assert len(os.listdir("/proc/self/fd")) == held


@pytest.mark.parametrize(("row", "column"), [(-1, 0), (1, 0), (0, -1), (0, 1)])
def test_a_piece_without_a_place_is_refused(
    engine: str, file: TokenFile, row: int, column: int
) -> None:
    piece = one_piece(0, 100)
    piece = replace(piece, row=np.array([row]), column=np.array([column]))
    with pytest.raises(ValueError, match="piece 0 has row"):
        TokenStore([file]).copy(piece, 0, 1, np.zeros((1, 100), dtype=np.int64), 0)


def test_a_file_that_changed_before_it_was_opened(file: TokenFile) -> None:
    with open(file.location, "ab") as more:
        more.write(b"xx")
    with pytest.raises(ValueError, match="expected a file of 8000 bytes, found 8002"):
        TokenStore([file])


@pytest.mark.parametrize(("start", "length"), [(-1, 10), (3995, 10), (4000, 1), (5000, 1)])
def test_runs_outside_a_file_are_refused(
    engine: str, file: TokenFile, start: int, length: int
) -> None:
    store = TokenStore([file])
    with pytest.raises(ValueError, match=r"a\.npy, which has 4000"):
        store.copy(one_piece(start, length), 0, 1, np.zeros((1, 100), dtype=np.int64), 0)


@pytest.fixture
def remote() -> Iterator[str]:
    """A file in fsspec's in-memory storage."""
    url = "memory://token-store/a.npy"
    tokens = np.arange(NUM_TOKENS, dtype=np.uint16)
    with fsspec.open(url, "wb") as opened:
        opened.write(tokens.tobytes())
    yield url
    fsspec.filesystem("memory").rm("/token-store", recursive=True)


@pytest.mark.parametrize("block_bytes", [0, 512])
def test_files_behind_urls_beside_local_ones(
    remote: str, file: TokenFile, block_bytes: int
) -> None:
    files = [open_token_file(remote, dtype="uint16"), file]
    store = TokenStore(files, read_block_bytes=block_bytes)
    pieces = some_pieces(2, rows=6, columns=65, seed=3)
    out = np.zeros((6, 65), dtype=np.uint16)
    store.copy(pieces, 0, len(pieces), out, 0)
    tokens = [np.arange(NUM_TOKENS, dtype=np.uint16), np.fromfile(file.location, dtype=np.uint16)]
    np.testing.assert_array_equal(out, expected(pieces, tokens, (6, 65), "uint16"))


def test_blocks_are_fetched_once(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TokenStore([open_token_file(remote, dtype="uint16")], read_block_bytes=1024)
    fetched = []
    memory = type(fsspec.filesystem("memory"))
    original = memory.cat_ranges
    monkeypatch.setattr(
        memory, "cat_ranges",
        lambda self, paths, *rest, **named: fetched.append(rest) or original(
            self, paths, *rest, **named
        ),
    )  # fmt: skip
    out = np.zeros((1, 100), dtype=np.uint16)
    for start in range(0, 900, 100):
        store.copy(one_piece(start, 100), 0, 1, out, 0)
    assert len(fetched) == 2  # 900 tokens of 2 bytes lie in two blocks of 1024


@pytest.mark.parametrize("block_bytes", [0, 512])
def test_a_url_that_was_cut_or_removed(remote: str, block_bytes: int) -> None:
    file = open_token_file(remote, dtype="uint16")
    store = TokenStore([file], read_block_bytes=block_bytes)
    out = np.zeros((1, 100), dtype=np.uint16)
    with fsspec.open(remote, "wb") as opened:
        opened.write(bytes(1000))
    with pytest.raises(ValueError, match="expected a file of 8000 bytes, found 1000"):
        store.copy(one_piece(600, 100), 0, 1, out, 0)
    fsspec.filesystem("memory").rm("/token-store/a.npy")
    with pytest.raises(ValueError, match="expected a file of 8000 bytes, found no file"):
        store.copy(one_piece(2600, 100), 0, 1, out, 0)
    fsspec.filesystem("memory").touch("/token-store/a.npy")


def test_a_local_file_behind_a_url(file: TokenFile) -> None:
    url = f"file://{file.location}"
    store = TokenStore([open_token_file(url, dtype="uint16")])
    out = np.zeros((1, 100), dtype=np.int64)
    store.copy(one_piece(7, 100), 0, 1, out, 0)
    np.testing.assert_array_equal(out[0], np.fromfile(file.location, dtype=np.uint16)[7:107])
    os.truncate(file.location, 150)
    with pytest.raises(ValueError, match="at byte 150: expected a file of 8000 bytes, found 150"):
        store.copy(one_piece(7, 100), 0, 1, out, 0)
    os.remove(file.location)
    with pytest.raises(ValueError, match=r"at byte 14: expected .* 8000 bytes, found no file"):
        store.copy(one_piece(7, 100), 0, 1, out, 0)


def test_a_store_is_sent_to_another_process_by_its_files(file: TokenFile, remote: str) -> None:
    store = pickle.loads(pickle.dumps(TokenStore([file, open_token_file(remote, dtype="uint16")])))
    out = np.zeros((1, 100), dtype=np.int64)
    store.copy(one_piece(7, 100), 0, 1, out, 0)
    np.testing.assert_array_equal(out[0], np.fromfile(file.location, dtype=np.uint16)[7:107])


def copy_in_child(store: TokenStore, sent: Connection) -> None:
    out = np.zeros((2, 100), dtype=np.int64)
    pieces = Pieces.concatenate([one_piece(7, 100), replace(one_piece(9, 100), **second_row())])
    store.copy(pieces, 0, 2, out, 0)
    sent.send(out)


def second_row() -> dict[str, np.ndarray]:
    return {"row": np.array([1]), "file": np.array([1])}


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_store_works_in_a_child_process(tmp_path: Path, file: TokenFile, method: str) -> None:
    tokens = write_raw(tmp_path / "b.npy", "uint16", seed=5)
    url = open_token_file(f"file://{tmp_path}/b.npy", dtype="uint16")
    for files in ([file, open_token_file(f"{tmp_path}/b.npy", dtype="uint16")], [file, url]):
        context = multiprocessing.get_context(method)
        received, sent = context.Pipe(duplex=False)
        child = context.Process(target=copy_in_child, args=(TokenStore(files), sent))
        child.start()
        assert received.poll(60)
        out = received.recv()
        child.join()
        first = np.fromfile(file.location, dtype=np.uint16)
        np.testing.assert_array_equal(out, [first[7:107], tokens[9:109]])
