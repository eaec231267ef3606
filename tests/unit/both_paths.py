"""Runs every test of a module twice: with the compiled kernel, and on numpy alone.

`from tests.unit.both_paths import both_paths` in a test module is all that is needed.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from autoscale import kernel

NOT_BUILT = "the compiled kernel is not built: python setup.py build_ext --inplace"


@contextmanager
def numpy_alone() -> Iterator[None]:
    """The numpy paths, whether or not the kernel is built."""
    compiled, kernel.compiled = kernel.compiled, None
    try:
        yield
    finally:
        kernel.compiled = compiled


@pytest.fixture(scope="module", params=["compiled", "numpy"], autouse=True)
def both_paths(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "numpy":
        with numpy_alone():
            yield
    elif kernel.compiled is None:
        pytest.skip(NOT_BUILT)
    else:
        yield
