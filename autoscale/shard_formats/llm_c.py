"""llm.c's `.bin`: a header of 256 int32 (magic, version, number of tokens), then the tokens."""

import struct
from typing import Final

import numpy as np

from .token_file import TokenFile, known_size, read_head

HEADER_BYTES: Final = 1024
_DTYPES: Final = {(20240520, 1): "uint16", (20240801, 7): "uint32"}
"""Of GPT-2's and of Llama 3's tokens, by magic and version."""


def is_llm_c(head: bytes) -> bool:
    """Whether a file that begins so is llm.c's."""
    magics = {magic for magic, _ in _DTYPES}
    return len(head) >= 4 and struct.unpack("<i", head[:4])[0] in magics


def open_llm_c(location: str, *, end_of_text_id: int | None = None) -> TokenFile:
    """The tokens of one of llm.c's files.

    Raises:
        ValueError: the header is none of llm.c's, or announces another number of tokens.
    """
    head, size = read_head(location, HEADER_BYTES), known_size(location)
    if len(head) < HEADER_BYTES:
        raise ValueError(
            f"{location} has {size} bytes; expected at least llm.c's header of {HEADER_BYTES}: the "
            "file is cut; write it again"
        )
    magic, version, count = struct.unpack("<3i", head[:12])
    dtype = _DTYPES.get((magic, version))
    if dtype is None:
        known = ", ".join(f"{each[0]} (version {each[1]})" for each in _DTYPES)
        raise ValueError(
            f"{location} begins with {magic} (version {version}); expected llm.c's {known}"
        )
    expected = HEADER_BYTES + count * np.dtype(dtype).itemsize
    if count <= 0 or size != expected:
        raise ValueError(
            f"{location} has {size} bytes; its header announces {count} {dtype} tokens, "
            f"{expected} bytes in all: the file is cut or empty; write it again"
        )
    return TokenFile(
        location=location,
        format="llm.c",
        dtype=dtype,
        offset=HEADER_BYTES,
        num_tokens=count,
        file_bytes=size,
        end_of_text_id=end_of_text_id,
    )
