"""What tests share: campaigns that nothing disturbed, and children without a launcher."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autoscale.worker import Worker
from tests.conftest import TinyExperiment, write_tiny
from tests.integration.jobs import Launched


@pytest.fixture(scope="session")
def undisturbed(
    tiny_text: Path, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., TinyExperiment]:
    """The finished experiment of a job with given settings; each is trained once."""
    known: dict[tuple[str, ...], TinyExperiment] = {}

    def of(*settings: str) -> TinyExperiment:
        if settings not in known:
            experiment = write_tiny(tmp_path_factory.mktemp("undisturbed"), tiny_text, tiny_shards)
            output, status = Launched(experiment, *settings).finish()
            assert status == 0, output
            known[settings] = experiment
        return known[settings]

    return of


@pytest.fixture(scope="module")
def on_cpu() -> Iterator[None]:
    """The variables that `start_job` sets on a machine without a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def worker(on_cpu: None) -> Worker:
    """Starts the children of a module's runs."""
    return Worker(fork=True)
