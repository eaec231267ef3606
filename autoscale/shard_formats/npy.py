"""numpy's `.npy`: one array of token ids, as `numpy.save` writes it."""

import io
from typing import Final

import numpy as np

from .token_file import TokenFile, known_size, read_head, require_token_dtype

MAGIC: Final = b"\x93NUMPY"
_HEAD_BYTES: Final = 1 << 14


def open_npy(location: str, *, end_of_text_id: int | None = None) -> TokenFile:
    """The tokens of a `.npy` file.

    Raises:
        ValueError: it is no one-dimensional array of integers, or its size is not what its header
            says.
    """
    head = io.BytesIO(read_head(location, _HEAD_BYTES))
    try:
        version = np.lib.format.read_magic(head)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = read(head)
    except Exception as error:  # whatever numpy's parser makes of a damaged header
        reason = " ".join([type(error).__name__, *str(error).split("\n")[:1]])
        raise ValueError(
            f"{location} has no readable numpy header ({reason}); write the file again with "
            "numpy.save"
        ) from error
    if len(shape) != 1 or dtype.byteorder == ">" or dtype.hasobject:
        raise ValueError(
            f"{location} holds a {dtype} array of shape {shape}; expected one row of little-endian "
            "token ids: save tokens.reshape(-1)"
        )
    name = require_token_dtype(location, dtype.name)
    size, offset = known_size(location), head.tell()
    expected = offset + shape[0] * dtype.itemsize
    if size != expected or shape[0] == 0:
        raise ValueError(
            f"{location} has {size} bytes; its header of {offset} bytes announces {shape[0]} "
            f"tokens, {expected} bytes in all: the file is damaged or empty; write it again"
        )
    return TokenFile(
        location=location,
        format="npy",
        dtype=name,
        offset=offset,
        num_tokens=shape[0],
        file_bytes=size,
        end_of_text_id=end_of_text_id,
    )
