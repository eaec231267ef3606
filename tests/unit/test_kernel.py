"""The compiled kernel: copies what numpy copies, and survives files that are cut under it."""

import mmap
import os
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from autoscale import kernel
from autoscale.batch_order import batch_positions
from autoscale.pieces import FileTable, Pieces
from autoscale.sampler import MixtureOrder
from autoscale.stage_quotas import Stage
from tests.unit.both_paths import NOT_BUILT, numpy_alone

pytestmark = pytest.mark.skipif(kernel.compiled is None, reason=NOT_BUILT)

PAGE = mmap.PAGESIZE


def table_of(files: list[NDArray[Any]]) -> FileTable:
    return FileTable(
        address=np.array([file.ctypes.data for file in files], dtype=np.uint64),
        num_tokens=np.array([file.size for file in files], dtype=np.int64),
        itemsize=np.array([file.itemsize for file in files], dtype=np.int64),
    )


def pieces_of(rows: list[tuple[int, int, int, int, int]]) -> Pieces:
    """From (row, column, file, start, length)."""
    columns = np.array(rows, dtype=np.int64).reshape(-1, 5).T.copy()
    row, column, file, start, length = columns
    return Pieces(row=row, column=column, file=file, start=start, length=length)


def unaligned(tokens: NDArray[Any], offset: int) -> NDArray[Any]:
    """The same tokens, `offset` bytes behind an aligned address."""
    raw = np.zeros(tokens.nbytes + 16, dtype=np.uint8)
    view = raw[offset : offset + tokens.nbytes].view(tokens.dtype)
    view[:] = tokens
    return view


@settings(max_examples=150)
@given(data=st.data())
def test_pieces_are_copied_as_numpy_copies_them(data: st.DataObject) -> None:
    """All widths of tokens in files and batches, any address, any place in a row."""
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    num_rows, num_columns = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 70))
    files = [
        unaligned(
            generator.integers(0, 200, size=data.draw(st.integers(1, 90))).astype(dtype),
            data.draw(st.integers(0, 15)),
        )
        for dtype in data.draw(
            st.lists(st.sampled_from(["u1", "u2", "i2", "i4", "u4", "i8"]), min_size=1, max_size=4)
        )
    ]
    rows = []
    for row in range(num_rows):
        for _ in range(data.draw(st.integers(0, 3))):
            file = data.draw(st.integers(0, len(files) - 1))
            length = data.draw(st.integers(0, min(num_columns, files[file].size)))
            column = data.draw(st.integers(0, num_columns - length))
            start = data.draw(st.integers(0, files[file].size - length))
            rows.append((row + 5, column, file, start, length))
    first = data.draw(st.integers(0, len(rows)))
    last = data.draw(st.integers(first, len(rows)))
    dtype = data.draw(st.sampled_from(["u2", "i4", "u4", "i8"]))
    found = np.full((num_rows, num_columns), 7, dtype=dtype)
    expected = found.copy()
    for row, column, file, start, length in rows[first:last]:
        tokens = files[file][start : start + length]
        expected[row - 5, column : column + length] = tokens
    assert kernel.copy_pieces(table_of(files), pieces_of(rows), first, last, found, 5) == -1
    assert np.array_equal(found, expected)


def test_tokens_are_widened_without_a_sign() -> None:
    file = np.array([0, 1, 2**15, 2**16 - 1], dtype=np.uint16)
    for view in (file, file.view(np.int16)):
        out = np.empty((1, 4), dtype=np.int64)
        kernel.copy_pieces(table_of([view]), pieces_of([(0, 0, 0, 0, 4)]), 0, 1, out, 0)
        assert out.tolist() == [[0, 1, 2**15, 2**16 - 1]]


@pytest.mark.parametrize(
    "piece",
    [(1, 0, 0, 97, 4), (1, 0, 0, -1, 4), (1, 0, 1, 0, 4), (1, 0, 0, 2**62, 4), (1, 0, 0, 101, 0)],
    ids=["past the end", "before the begin", "not mapped", "far away", "nothing, past the end"],
)
def test_the_first_piece_outside_its_file_is_named(piece: tuple[int, int, int, int, int]) -> None:
    table = table_of([np.arange(100, dtype=np.uint16), np.zeros(4, dtype=np.uint16)])
    table.address[1] = 0
    out = np.zeros((3, 4), dtype=np.int64)
    pieces = pieces_of([(0, 0, 0, 5, 4), piece, (2, 0, 0, 6, 4)])
    assert kernel.copy_pieces(table, pieces, 0, 3, out, 0) == 1
    assert out.tolist() == [[5, 6, 7, 8], [0] * 4, [0] * 4]


@pytest.mark.parametrize(
    "piece",
    [
        (3, 0, 0, 0, 4),
        (-1, 0, 0, 0, 4),
        (0, 1, 0, 0, 4),
        (0, -1, 0, 0, 4),
        (0, 0, 0, 0, -1),
        (0, 0, 1, 0, 4),
        (0, 0, -1, 0, 4),
        (0, 2**62, 0, 0, 2**62),
    ],
)
def test_a_piece_without_a_place_is_refused(piece: tuple[int, int, int, int, int]) -> None:
    table, out = table_of([np.arange(9, dtype=np.uint16)]), np.zeros((3, 4), dtype=np.int64)
    with pytest.raises(ValueError, match=r"piece 0 has row .* expected rows from 0"):
        kernel.copy_pieces(table, pieces_of([piece]), 0, 1, out, 0)
    assert not out.any()


def test_arrays_that_do_not_fit_are_refused() -> None:
    table = table_of([np.arange(9, dtype=np.uint16)])
    pieces, out = pieces_of([(0, 0, 0, 0, 4)]), np.zeros((3, 4), dtype=np.int64)
    for wrong in (out.astype(np.uint8), out.reshape(-1)):
        with pytest.raises(ValueError, match="expected 2 axes and items of 2, 4 or 8 bytes"):
            kernel.copy_pieces(table, pieces, 0, 1, wrong, 0)
    with pytest.raises((ValueError, BufferError), match="contiguous"):
        kernel.copy_pieces(table, pieces, 0, 1, out.T, 0)
    with pytest.raises((ValueError, BufferError), match=r"read-only|writable"):
        kernel.copy_pieces(table, pieces, 0, 1, np.broadcast_to(out, (3, 4)), 0)
    with pytest.raises(ValueError, match="pieces 0 to 2 asked for; there are 1"):
        kernel.copy_pieces(table, pieces, 0, 2, out, 0)
    short = Pieces(
        row=pieces.row, column=pieces.column, file=pieces.file, start=pieces.start, length=out[0]
    )
    with pytest.raises(ValueError, match="length has 32 bytes in items of 8; expected 1 items"):
        kernel.copy_pieces(table, short, 0, 1, out, 0)
    table.itemsize[0] = 3
    with pytest.raises(ValueError, match="file 0 has items of 3 bytes; expected 1, 2, 4, 8"):
        kernel.copy_pieces(table, pieces, 0, 1, out, 0)


def test_arrays_are_let_go_when_others_come() -> None:
    """The last table and pieces stay open, no earlier ones."""
    out = np.zeros((1, 4), dtype=np.int64)
    held = []
    for _ in range(3):
        table, pieces = table_of([np.arange(9, dtype=np.uint16)]), pieces_of([(0, 0, 0, 0, 0)])
        for _ in range(2):
            assert kernel.copy_pieces(table, pieces, 0, 1, out, 0) == -1
        held.append([weakref.ref(table.address), weakref.ref(pieces.start)])
    del table, pieces
    assert [[array() is None for array in arrays] for arrays in held[:2]] == [[True, True]] * 2


# --- files that are cut --------------------------------------------------------------------------


def mapped_and_cut(path: Path) -> tuple[NDArray[np.uint16], Any]:
    """Four mapped pages, of which the file has lost the last two."""
    np.arange(2 * PAGE, dtype=np.uint16).tofile(path)
    tokens = np.memmap(path, dtype=np.uint16, mode="r")
    os.truncate(path, 2 * PAGE)
    return tokens, table_of([tokens])


def test_a_file_that_was_cut_is_reported_and_others_still_read(tmp_path: Path) -> None:
    _tokens, table = mapped_and_cut(tmp_path / "cut.bin")
    pieces = pieces_of([(0, 0, 0, 9, 8), (1, 0, 0, 3 * PAGE // 2, 8), (2, 0, 0, 17, 8)])
    out = np.zeros((3, 8), dtype=np.int64)
    for _ in range(3):
        out[:] = 0
        assert kernel.copy_pieces(table, pieces, 0, 3, out, 0) == 1
        assert out[0].tolist() == list(range(9, 17)) and not out[2].any()
    assert kernel.copy_pieces(table, pieces, 2, 3, out, 0) == -1
    assert out[2].tolist() == list(range(17, 25))


def test_a_copy_may_end_where_the_file_ends_now(tmp_path: Path) -> None:
    """Asking for the next piece ahead of time never touches what is gone."""
    _tokens, table = mapped_and_cut(tmp_path / "cut.bin")
    out = np.zeros((1, PAGE), dtype=np.uint16)
    pieces = pieces_of([(0, 0, 0, 0, PAGE), (1, 0, 0, PAGE, PAGE)])
    assert kernel.copy_pieces(table, pieces, 0, 1, out, 0) == -1
    assert np.array_equal(out[0], np.arange(PAGE))


def test_threads_meet_cut_files_at_once(tmp_path: Path) -> None:
    """Each thread goes on from its own copy."""
    _tokens, table = mapped_and_cut(tmp_path / "cut.bin")
    good = pieces_of([(0, 0, 0, 0, PAGE)])
    bad = pieces_of([(0, 0, 0, 0, 8), (0, 0, 0, PAGE - 8, 16)])
    outcomes: dict[int, set[int]] = {}

    def copy(number: int) -> None:
        out = np.zeros((1, PAGE), dtype=np.int64)
        pieces = bad if number % 2 else good
        outcomes[number] = {
            kernel.copy_pieces(table, pieces, 0, len(pieces), out, 0) for _ in range(200)
        }

    threads = [threading.Thread(target=copy, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == {number: {1} if number % 2 else {-1} for number in range(6)}


SCRIPT = """
import ctypes, faulthandler, signal, sys
from pathlib import Path
import numpy as np
from tests.unit.test_kernel import kernel, mapped_and_cut, pieces_of
tokens, table = mapped_and_cut(Path(sys.argv[1]))
pieces, out = pieces_of([(0, 0, 0, tokens.size - 8, 8)]), np.zeros((1, 8), dtype=np.int64)
read = lambda: kernel.copy_pieces(table, pieces, 0, 1, out, 0)
{body}
"""


def run(body: str, path: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(body=body), str(path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    "body",
    [
        "assert read() == 0; tokens[-1]",
        "faulthandler.enable(); assert read() == 0; tokens[-1]",
        "assert read() == 0; faulthandler.enable(); tokens[-1]",
        "read(); faulthandler.enable(); assert read() == 0; tokens[-1]",
        "read(); faulthandler.enable(); read(); faulthandler.disable(); read(); tokens[-1]",
        "read(); signal.raise_signal(signal.SIGBUS)",
    ],
    ids=["alone", "faulthandler before", "after", "and read again", "disabled again", "raised"],
)
def test_other_bus_errors_still_end_the_process(body: str, tmp_path: Path) -> None:
    finished = run(f"{body}\nprint('alive')", tmp_path / "cut.bin")
    assert finished.returncode == -signal.SIGBUS, finished.stderr
    assert finished.stdout == ""
    told = "Fatal Python error: Bus error" in finished.stderr
    assert told == ("enable()" in body and "disable" not in body)


def test_a_handler_of_python_is_called_for_other_signals(tmp_path: Path) -> None:
    finished = run(
        "signal.signal(signal.SIGBUS, lambda *_: print('caught'))\n"
        "assert read() == 0\nsignal.raise_signal(signal.SIGBUS)\nassert read() == 0\n"
        "signal.signal(signal.SIGBUS, signal.SIG_IGN)\n"
        "assert read() == 0\nsignal.raise_signal(signal.SIGBUS)\nprint('done')",
        tmp_path / "cut.bin",
    )
    assert (finished.returncode, finished.stdout) == (0, "caught\ndone\n"), finished.stderr


# --- the arithmetic of the order -----------------------------------------------------------------


@st.composite
def long_orders(draw: st.DrawFn) -> MixtureOrder:
    """Stages of any kind and length, most of them far longer than could be walked through."""
    num_domains = draw(st.integers(1, 9))
    stages = []
    for _ in range(draw(st.integers(1, 3))):
        weights = draw(st.lists(st.floats(1e-6, 1), min_size=num_domains, max_size=num_domains))
        length = draw(st.one_of(st.integers(1, 50), st.integers(1, 2**44)))
        stage = Stage.of_weights(weights, length)
        if draw(st.booleans()):
            stage = Stage(quotas=stage.quotas, cut=draw(st.integers(1, length)))
        stages.append(stage)
    sizes = st.one_of(st.integers(1, 2000), st.integers(1, 2**50))
    return MixtureOrder(
        domains=[str(number) for number in range(num_domains)],
        num_windows=draw(st.lists(sizes, min_size=num_domains, max_size=num_domains)),
        seed=draw(st.integers(0, 2**63)),
        stages=stages,
        locality=draw(st.sampled_from([1, 1, 2, 7, 512])),
    )


@settings(max_examples=150)
@given(order=long_orders(), seed=st.integers(0, 2**32))
def test_orders_are_those_of_numpy(order: MixtureOrder, seed: int) -> None:
    generator = np.random.default_rng(seed)
    positions = generator.integers(0, order.num_samples, size=200)
    ends = np.cumsum([stage.num_samples for stage in order.stages])
    positions[: len(ends)] = ends - 1
    located = order.locate(positions)
    with numpy_alone():
        expected = order.locate(positions)
    for found, wanted in zip(
        (located.domain, located.epoch, located.window),
        (expected.domain, expected.epoch, expected.window),
        strict=True,
    ):
        assert np.array_equal(found, wanted)


@given(
    steps=st.lists(st.integers(0, 2**40), max_size=5),
    batch_size=st.one_of(st.integers(1, 40), st.sampled_from([512, 1023, 5000])),
    seed=st.integers(-(2**70), 2**70),
    data=st.data(),
)
def test_shuffles_are_those_of_numpy(
    steps: list[int], batch_size: int, seed: int, data: st.DataObject
) -> None:
    world_size = data.draw(st.integers(1, 2 * batch_size))
    arguments: dict[str, Any] = {
        "batch_size": batch_size,
        "rank": data.draw(st.integers(0, world_size - 1)),
        "world_size": world_size,
        "seed": seed,
    }
    for step in [np.array(steps, dtype=np.int64), *steps]:
        found = batch_positions(step=step, **arguments)
        with numpy_alone():
            expected = batch_positions(step=step, **arguments)
        assert found.shape == expected.shape and np.array_equal(found, expected)


def test_draws_of_domains_without_windows_are_refused() -> None:
    for num_windows, domain in ((0, 1), (-3, 1), (2**50 + 1, 1), (9, 2), (9, -1)):
        with pytest.raises(ValueError, match=f"draw 1 is of domain {domain}, which has no windows"):
            kernel.draw_windows(
                np.array([5, num_windows]),
                np.zeros(2, dtype=np.uint64),
                np.array([0, domain]),
                *(np.zeros(2, dtype=np.int64) for _ in range(3)),
            )


def test_elements_outside_their_permutation_are_refused() -> None:
    """They would be walked over for ever."""
    image, key = np.zeros(2, dtype=np.int64), np.zeros(2, dtype=np.uint64)
    for size in (0, 4, -5):
        with pytest.raises(ValueError, match=f"element 4 of a permutation of {size % 2**64}"):
            kernel.permute(np.array([1, 4]), np.array([9, size]), key, image)
