"""Probe runs that never got to use context are named."""

from dataclasses import replace

import numpy as np
import pytest

from autoscale import stages
from autoscale.probe_length import EARLY, is_early, probe_levels, unigram_entropy
from autoscale.records import read_json
from autoscale.summary import summarise
from autoscale.windows.opening import open_windows
from autoscale.windows.reading import WindowReader
from tests.unit.fake_experiment import FOUR, JOINT, FakeExperiment


def test_the_entropy_is_that_of_the_tokens_counted(tmp_path):
    fake = FakeExperiment(tmp_path)
    manifest = fake.experiment.manifest
    windows = open_windows(
        manifest, FOUR[1], "validation", sequence_length=128, packing="contiguous"
    )
    tokens = WindowReader(windows).read(np.arange(len(windows)))[0][:, 1:]
    _, counts = np.unique(tokens, return_counts=True)
    shares = counts / counts.sum()
    found = unigram_entropy(manifest, FOUR[1], sequence_length=128)
    assert found == pytest.approx(-(shares * np.log(shares)).sum())
    assert 7 < found < np.log(2048)


def probe(fake, shift):
    """All probe runs, their losses moved by so many nats."""
    experiment = fake.experiment
    for planned in experiment.probes():
        result = fake.finish(experiment, planned.spec)
        moved = tuple(
            replace(
                each,
                losses={name: loss + shift for name, loss in each.losses.items()},
                mean_loss=each.mean_loss + shift,
            )
            for each in result.evaluations
        )
        replace(result, evaluations=moved).save(experiment.store.folder(planned.spec))


@pytest.mark.parametrize(
    "shift, early", [(0.0, False), (4.0, True)], ids=["with context", "without"]
)
def test_a_fit_of_runs_without_context_says_so(tmp_path, shift, early):
    fake = FakeExperiment(tmp_path, tables=JOINT | {"fit": {"law": "eti", "draws": 2}})
    probe(fake, shift)
    stages.fit(fake.config)
    [level] = read_json(stages.artifact(fake.config, "fit"), "fit")["levels"]
    assert level["token_budget"] == 160_000
    assert is_early(level) == early == (level["loss"] > EARLY * level["unigram_entropy"])
    texts = [entry["text"] for entry in summarise(fake.config)["warnings"]]
    said = [text for text in texts if "they hardly use context yet" in text]
    assert len(said) == early
    assert not early or said[0].startswith(
        "On the mean over the training domains the reference runs at 160K end at"
    )


def test_masked_models_see_context_from_the_first_step(tmp_path):
    fake = FakeExperiment(tmp_path, tables={"model": {"name": "bert-nano"}})
    experiment = fake.experiment
    finished = [
        (planned, fake.finish(experiment, planned.spec)) for planned in experiment.probes()[:3]
    ]
    assert probe_levels(experiment, finished) == []
