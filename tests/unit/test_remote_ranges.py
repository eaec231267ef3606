"""Files behind a web server that answers ranges: as object storage does, with real connections."""

import functools
import http.server
import multiprocessing
import os
import re
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from autoscale import remote_ranges
from autoscale.pieces import Pieces
from autoscale.remote_ranges import RemoteRanges
from autoscale.shard_formats.registry import open_token_file
from autoscale.token_store import TokenStore

FOREIGN = Path(__file__).parents[1] / "fixtures" / "foreign_shards"
NUM_TOKENS = 4000
ROWS, COLUMNS = 20, 100


class RangeServer(http.server.SimpleHTTPRequestHandler):
    """Python's file server, which answers whole files only, with ranges."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None or not path.is_file():
            super().do_GET()
            return
        size = path.stat().st_size
        begin, end = int(wanted[1]), min(int(wanted[2] or size - 1) + 1, size)
        content = path.read_bytes()[begin:end]
        self.send_response(206 if content else 416)
        self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def serve(folder: Path, sent: Connection) -> None:
    handler = functools.partial(RangeServer, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    sent.send(server.server_port)
    server.serve_forever()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """URL and path of a folder behind a server."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "foreign").symlink_to(FOREIGN)
    context = multiprocessing.get_context("spawn")
    received, sent = context.Pipe(duplex=False)
    server = context.Process(target=serve, args=(folder, sent), daemon=True)
    server.start()
    assert received.poll(60)
    yield f"http://127.0.0.1:{received.recv()}", folder
    server.kill()
    server.join()


@pytest.fixture
def remote(served: tuple[str, Path]) -> tuple[str, Path]:
    """URL and path of a file whose tokens count up."""
    url, folder = served
    np.arange(NUM_TOKENS, dtype=np.uint16).tofile(folder / "a.npy")
    return f"{url}/a.npy", folder / "a.npy"


def read_rows(store: TokenStore) -> np.ndarray:
    rows = np.arange(ROWS)
    zeros = np.zeros(ROWS, dtype=np.int64)
    pieces = Pieces(
        row=rows, column=zeros, file=zeros, start=rows * 190, length=np.full(ROWS, COLUMNS)
    )
    out = np.zeros((ROWS, COLUMNS), dtype=np.uint32)
    store.copy(pieces, 0, ROWS, out, 0)
    return out


EXPECTED = np.arange(ROWS)[:, None] * 190 + np.arange(COLUMNS)


def read_in_child(store: TokenStore, sent: Connection) -> None:
    sent.send(read_rows(store))


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("block_bytes", [0, 512])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_parent_and_child_read_at_their_own_connections(
    remote: tuple[str, Path], method: str, block_bytes: int
) -> None:
    """A child that closed what it inherits would take the parent's connections along."""
    file = open_token_file(remote[0], dtype="uint16")
    store = TokenStore([file], read_block_bytes=block_bytes)
    np.testing.assert_array_equal(read_rows(store), EXPECTED)
    context = multiprocessing.get_context(method)
    received, sent = context.Pipe(duplex=False)
    child = context.Process(target=read_in_child, args=(store, sent))
    child.start()
    assert received.poll(60)
    np.testing.assert_array_equal(received.recv(), EXPECTED)
    child.join()
    again = TokenStore([open_token_file(remote[0], dtype="uint16")])
    np.testing.assert_array_equal(read_rows(again), EXPECTED)


@pytest.mark.parametrize("name", ["megatron/int32.bin", "datatrove/small.ds", "layouts/saved.npy"])
def test_shards_of_every_kind(served: tuple[str, Path], name: str) -> None:
    remote = open_token_file(f"{served[0]}/foreign/{name}", end_of_text_id=1)
    local = open_token_file(f"{FOREIGN}/{name}", end_of_text_id=1)
    np.testing.assert_array_equal(remote.document_starts(), local.document_starts())
    np.testing.assert_array_equal(remote.tokens(), local.tokens())
    assert remote.hash() == local.hash()


@pytest.mark.parametrize("block_bytes", [0, 512])
def test_what_was_cut_or_removed(remote: tuple[str, Path], block_bytes: int) -> None:
    url, path = remote
    store = TokenStore([open_token_file(url, dtype="uint16")], read_block_bytes=block_bytes)
    os.truncate(path, 1000)
    with pytest.raises(ValueError, match=r"cannot be read at byte .* 8000 bytes, found 1000"):
        read_rows(store)
    path.unlink()
    with pytest.raises(ValueError, match=r"cannot be read at byte .* 8000 bytes, found no file"):
        read_rows(store)
    with pytest.raises(ValueError, match=r"a\.npy cannot be read"):
        open_token_file(url, dtype="uint16")


def test_old_blocks_are_dropped(remote: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_ranges, "KEPT_BYTES", 1000)
    ranges = RemoteRanges({0: open_token_file(remote[0], dtype="uint16")}, block_bytes=300)
    for begin in (0, 250, 7900, 4000, 0):
        wanted = np.arange(begin // 2, begin // 2 + 50, dtype=np.uint16).tobytes()
        assert ranges.read([(0, begin, begin + 100), (0, begin, begin)]) == [wanted, b""]
        assert sum(map(len, ranges._blocks.values())) <= 1000
