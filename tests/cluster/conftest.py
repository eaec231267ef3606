"""An experiment that is nearly done, so that a job over hosts has little of everything left."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.hosts import Hosts
from tests.conftest import TinyExperiment, write_tiny

SHORT = [
    "--set", "data.domains=['python_code', 'english_docs']",
    "--set", "probe.budgets=['4K']",
    "--set", "probe.reference_seeds=1",
    "--set", "evaluation.points=1",
    "--set", "evaluation.sequences_per_domain=4",
    "--set", "fit.draws=2",
    "--set", "fit.folds=2",
    "--set", "train.budget='4K'",
    "--set", "train.seeds=[0]",
    "--set", "train.baselines=[]",
]  # fmt: skip
REMOVED = ("probe-4K-reference-", "probe-4K-mix-000-")


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Three hosts; a test leaves them as it found them."""
    made = Hosts(tmp_path_factory.mktemp("hosts") / "three", 3)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="session")
def probed(
    tiny_text: Path, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> TinyExperiment:
    """All probe runs, by one process without a launcher."""
    experiment = write_tiny(tmp_path_factory.mktemp("probed"), tiny_text, tiny_shards)
    experiment.autoscale("probe", *SHORT, timeout=400)
    return experiment


@pytest.fixture
def nearly(tiny: TinyExperiment, probed: TinyExperiment) -> TinyExperiment:
    """Two probe runs are left, and all that follows on the probes; run it with `SHORT`."""
    shutil.copytree(probed.output / "runs", tiny.output / "runs")
    for name in REMOVED:
        (folder,) = (tiny.output / "runs").glob(f"{name}*")
        shutil.rmtree(folder)
    return tiny
