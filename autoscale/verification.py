"""Verify prepared or adopted data: read every byte, and list everything that is wrong with it.

    each shard    sizes and header, sha256, document index, empty documents, token ids
    tokenizer     its files are those that the manifest names
    all shards    nothing that is validated with is trained on

Several shards are read at a time; what they hold is compared by `overlap`.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .documents import Progress
from .locations import is_url
from .manifest import Manifest, Shard, Split, require_documents
from .overlap import HeldOut, document_keys, varied_windows, window_keys
from .shard_formats.token_file import TokenFile
from .tokenizer import TextTokenizer, tokenizer_fingerprint

THREADS: Final = 4
BLOCK_TOKENS: Final = 1 << 20


@dataclass(slots=True)
class _Opened:
    """A shard under verification."""

    domain: str
    split: Split
    shard: Shard
    num_bytes: int
    """Of its tokens; the unit of progress."""
    problems: list[str] = field(default_factory=list)
    file: TokenFile | None = None
    starts: NDArray[np.int64] | None = None
    """Where documents begin, and the end; None where the file does not say."""

    def refuse(self, problem: str) -> None:
        where = f"domain {self.domain!r}, {self.split} shard {self.shard.path}"
        self.problems.append(f"{where}: {problem}")


def verify(manifest: Manifest, *, progress: Progress | None = None) -> list[str]:
    """Everything that is wrong with the data, one line each; empty where nothing is."""
    report: Progress = progress or (lambda stage, done, total, /: None)
    opened = [
        _Opened(domain, split, shard, manifest.token_bytes(shard))
        for domain, split, shard in manifest.all_shards()
    ]
    with ThreadPoolExecutor(THREADS) as pool:
        _each(pool, lambda each: _open(manifest, each), opened, "open", report)
        _refuse_same_files(opened)
        readable = [each for each in opened if each.file is not None]
        validation = [each for each in readable if each.split == "validation"]
        train = [each for each in readable if each.split == "train"]
        held_out = HeldOut(
            by_documents=all(each.starts is not None for each in readable),
            shortest=min((each.shard.tokens for each in validation), default=0),
        )
        _each(
            pool,
            lambda each: _read(manifest, each, held_out),
            validation,
            "read validation",
            report,
        )
        held_out.close()
        _each(pool, lambda each: _read(manifest, each, held_out), train, "read train", report)
    return _tokenizer_problems(manifest) + [problem for each in opened for problem in each.problems]


def _each(
    pool: ThreadPoolExecutor,
    action: Callable[[_Opened], None],
    opened: Sequence[_Opened],
    stage: str,
    report: Progress,
) -> None:
    total = sum(each.num_bytes for each in opened)
    done = 0
    report(stage, done, total)
    for each, _ in zip(opened, pool.map(action, opened), strict=True):
        done += each.num_bytes
        report(stage, done, total)


def _open(manifest: Manifest, each: _Opened) -> None:
    """Headers, index and sha256; what cannot be opened is not read further."""
    try:
        each.file = manifest.open_file(each.shard)
        starts = each.file.document_starts()
        found = each.file.hash()
    except ValueError as error:
        each.file = None
        each.refuse(str(error))
        return
    if found != each.shard.sha256:
        each.refuse(
            f"sha256 is {found}; the manifest expects {each.shard.sha256}: the content was "
            "changed. Run prepare again"
        )
    if starts is None:
        return
    try:
        require_documents(each.shard, starts.size - 1)
    except ValueError as error:
        each.refuse(str(error))
    empty = np.flatnonzero(np.diff(starts) == 0)
    if empty.size:
        each.refuse(
            f"{empty.size} documents are empty, the first of them document {empty[0]}; write the "
            "shard again without them"
        )
    # A flat file without one end-of-text token does not say where its documents end.
    if starts.size > 2 or each.file.companions:
        each.starts = starts


def _refuse_same_files(opened: Sequence[_Opened]) -> None:
    seen: dict[str, str] = {}
    for each in opened:
        if each.file is not None:
            location = each.file.location
            real = location if is_url(location) else os.path.realpath(location)
            if real in seen:
                each.refuse(f"it is the same file as {seen[real]}; list it once")
            seen[real] = each.shard.path


def _read(manifest: Manifest, each: _Opened, held_out: HeldOut) -> None:
    """Check the token ids, and compare what is trained on with what is held out."""
    count, place, owner = 0, 0, ""
    try:
        for places, keys in _keys(each, manifest, held_out):
            if each.split == "validation":
                held_out.add(each.domain, keys)
                continue
            found, domain = held_out.find(keys)
            if found.size and not count:
                place, owner = int(places[found[0]]), domain
            count += found.size
    except ValueError as error:
        each.refuse(str(error))
    if count and held_out.by_documents:
        each.refuse(
            f"{count} of its documents are also held out, the first of them document {place} in "
            f"domain {owner!r}: losses on them would mean nothing; leave them out of one split"
        )
    elif count:
        each.refuse(
            f"{count} of its windows of {held_out.window} tokens are also held out, the first of "
            f"them at token {place} in domain {owner!r}: losses on them would mean nothing; leave "
            "them out of one split"
        )


def _keys(
    each: _Opened, manifest: Manifest, held_out: HeldOut
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint64]]]:
    """Places (numbers of documents, or tokens) and keys, block after block."""
    assert each.file is not None
    blocks = valid_blocks(each.file, manifest.tokenizer.vocab_size)
    if held_out.by_documents:
        assert each.starts is not None
        for first, tokens, starts in _whole_documents(blocks, each.starts):
            keys, places = document_keys(tokens, starts, manifest.tokenizer.end_of_text_id)
            yield places + first, keys
        return
    step = held_out.window if each.split == "validation" else 1
    for first, tokens in _overlapping(blocks, held_out.window):
        keys = window_keys(tokens, held_out.window)
        places = np.arange(-first % step, keys.size, step)
        if each.split == "validation":
            places = places[varied_windows(tokens, held_out.window)[places]]
        yield places + first, keys[places]


def valid_blocks(file: TokenFile, vocab_size: int) -> Iterator[NDArray[np.integer]]:
    """All tokens in blocks.

    Raises:
        ValueError: a token id is outside the vocabulary.
    """
    begin = 0
    for block in file.blocks(BLOCK_TOKENS):
        if block.min() < 0 or block.max() >= vocab_size:
            place = int(np.flatnonzero((block < 0) | (block >= vocab_size))[0])
            raise ValueError(
                f"token {begin + place} is {block[place]}; expected ids from 0 to "
                f"{vocab_size - 1}, below vocab_size: the shard is damaged, or of another tokenizer"
            )
        yield block
        begin += block.size


def _whole_documents(
    blocks: Iterator[NDArray[np.integer]], starts: NDArray[np.int64]
) -> Iterator[tuple[int, NDArray[np.integer], NDArray[np.int64]]]:
    """Number of the first document, tokens, and starts of documents that blocks complete."""
    held: list[NDArray[np.integer]] = []
    begin = end = first = 0
    for block in blocks:
        held.append(block)
        end += block.size
        last = int(np.searchsorted(starts, end, side="right")) - 1
        if last > first:
            tokens = np.concatenate(held)
            size = int(starts[last]) - begin
            yield first, tokens[:size], starts[first : last + 1] - begin
            held, begin, first = [tokens[size:]], int(starts[last]), last


def _overlapping(
    blocks: Iterator[NDArray[np.integer]], window: int
) -> Iterator[tuple[int, NDArray[np.integer]]]:
    """Place of the first token, and blocks that begin with the end of the one before."""
    kept: NDArray[np.integer] | None = None
    begin = 0
    for block in blocks:
        tokens = block if kept is None else np.concatenate([kept, block])
        yield begin, tokens
        kept = tokens[max(0, tokens.size - window + 1) :]
        begin += tokens.size - kept.size


def _tokenizer_problems(manifest: Manifest) -> list[str]:
    """What is wrong with the tokenizer's files."""
    folder = manifest.tokenizer_folder
    if folder is None:
        return []
    if not folder.is_dir():
        return [f"the tokenizer's folder {folder} does not exist; run prepare again"]
    record = manifest.tokenizer
    try:
        tokenizer = TextTokenizer.open(folder)
        found = tokenizer_fingerprint(folder)
    except Exception as error:  # tokenizers raises no narrower class for a damaged file
        return [f"the tokenizer in {folder} cannot be loaded ({error}); run prepare again"]
    if found != record.sha256:
        return [
            f"the tokenizer in {folder} has sha256 {found}; the manifest expects {record.sha256}: "
            "it is another tokenizer than the one of the shards. Put that one back"
        ]
    numbers = (tokenizer.vocab_size, tokenizer.end_of_text_id)
    if numbers != (record.vocab_size, record.end_of_text_id):
        return [
            f"the tokenizer in {folder} has vocab_size {numbers[0]} and end_of_text_id "
            f"{numbers[1]}; the manifest says {record.vocab_size} and {record.end_of_text_id}"
        ]
    return []
