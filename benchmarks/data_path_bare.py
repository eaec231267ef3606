"""`data_path_bare.c`, compiled with `cc -O3` into a temporary folder and called through ctypes."""

import ctypes
import subprocess
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
from numpy.typing import NDArray

_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_int64


@cache
def library(*options: str) -> ctypes.CDLL:
    """The compiled file; `options` come after `-O3`."""
    source = Path(__file__).with_suffix(".c")
    target = Path(mkdtemp(prefix="data_path_bare_")) / "bare.so"
    command = ["cc", "-O3", *options, "-shared", "-fPIC", str(source), "-o", str(target)]
    subprocess.run(command, check=True)
    loaded = ctypes.CDLL(str(target))
    loaded.gather.argtypes = [_POINTER, _COUNT, _COUNT, _POINTER]
    loaded.gather_batches.argtypes = [_POINTER, _COUNT, _COUNT, _COUNT, _POINTER]
    loaded.greedy.argtypes = [_POINTER, _COUNT, _COUNT, _POINTER, _POINTER]
    loaded.chain.argtypes = [_POINTER, _COUNT, _COUNT, _POINTER]
    for function in (loaded.gather, loaded.gather_batches, loaded.greedy, loaded.chain):
        function.restype = None
    return loaded


def greedy(weights: NDArray[np.float64], draws: int) -> NDArray[np.int32]:
    """The domain of each draw by Megatron's rule, shape (draws,)."""
    drawn, domain = np.zeros(weights.size, dtype=np.int64), np.empty(draws, dtype=np.int32)
    library().greedy(
        weights.ctypes.data, weights.size, draws, drawn.ctypes.data, domain.ctypes.data
    )
    return domain


def chain(quotas: NDArray[np.int64], draws: int) -> NDArray[np.int32]:
    """The domain of each draw by a chain of Beatty words, shape (draws,)."""
    domain = np.empty(draws, dtype=np.int32)
    library().chain(quotas.ctypes.data, quotas.size, draws, domain.ctypes.data)
    return domain
