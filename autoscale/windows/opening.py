"""Open the windows of a domain as a manifest describes it, in the form that was asked for."""

from typing import Literal, get_args

from ..manifest import Manifest
from .contiguous import ContiguousWindows
from .documents import Documents
from .form import Packing, Windows
from .packed import PackedWindows

Split = Literal["train", "validation"]


def open_windows(
    manifest: Manifest,
    name: str,
    split: Split,
    *,
    sequence_length: int,
    packing: Packing = "contiguous",
    share: float = 1.0,
) -> Windows:
    """The windows of one domain.

    Args:
        manifest: describes the data.
        name: of the domain.
        split: "train" or "validation".
        sequence_length: T, tokens that a window feeds to the model; a row has one more.
        packing: how documents fill the rows.
        share: of the domain's tokens, taken by whole documents, above 0 and at most 1.

    Raises:
        ValueError: the domain has no shards, a shard is damaged, an argument is impossible, or
            there is not one window.
    """
    if sequence_length < 1:
        raise ValueError(f"sequence_length is {sequence_length}; expected at least 1")
    for what, found, known in (("packing", packing, Packing), ("split", split, Split)):
        if found not in get_args(known):
            raise ValueError(
                f"{what} is {found!r}; expected {' or '.join(map(repr, get_args(known)))}"
            )
    shards = getattr(manifest.domain(name), split)
    if not shards:
        raise ValueError(
            f"domain {name!r}, {split}: there are no shards: prepare some text for this split"
        )
    files = [manifest.open_file(shard) for shard in shards]
    windows: Windows
    if packing == "contiguous" and share == 1:
        windows = ContiguousWindows.of_files(files, sequence_length=sequence_length)
    else:
        documents = Documents.of_files(files).share(name, share)
        if packing == "contiguous":
            windows = ContiguousWindows.of_documents(
                files, documents, sequence_length=sequence_length
            )
        else:
            windows = PackedWindows.of_documents(
                files, documents, sequence_length=sequence_length, packing=packing
            )
    if not len(windows):
        longest = max(file.num_tokens for file in files)
        raise ValueError(
            f"domain {name!r}, {split}: sequence_length {sequence_length} needs "
            f"{sequence_length + 1} tokens in a shard; the longest of {len(files)} has {longest}: "
            "shorten the sequences, or prepare more text"
            if packing == "contiguous"
            else f"domain {name!r}, {split}: no document has two tokens; prepare more text"
        )
    return windows
