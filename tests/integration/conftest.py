"""What tests share that train in child processes without a launcher."""

import pytest

from autoscale.worker import Worker


@pytest.fixture(scope="module")
def worker() -> Worker:
    """Starts the children of a module's runs."""
    return Worker(fork=True)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that `start_job` sets on a machine without a GPU."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
