"""The recount agrees with runs as they were, and finds whatever was changed."""

import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from autoscale.audit import audit_run
from autoscale.data import RunStream
from autoscale.planning import Experiment
from tests.unit.fake_experiment import FOUR, FakeExperiment

MODES = {
    "contiguous": {},
    "best_fit": {"packing": "best_fit"},
    "whole_documents": {"packing": "whole_documents"},
    "matched": {},
    "locality": {"locality": 5},
}
SMALL = {"available": 9_000, "documents": 90, "tables": {"data": {"max_epochs": 200}}}


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    return FakeExperiment(tmp_path_factory.mktemp("fake"), **SMALL)


def finished(fake, mode, tmp_path):
    """A run as the trainer records it, without its training."""
    tables = {
        "output_dir": str(tmp_path / "out"),
        "data": MODES[mode] | {"max_epochs": 200},
        "probe": {"match_repetition": mode == "matched"},
    }
    experiment = Experiment(fake.changed(tables))
    spec = experiment.probes()[2].spec
    stream = RunStream(spec, experiment.manifest)
    for _ in stream:
        pass
    given = stream.delivery
    epochs = given.windows / np.array(stream.order.num_windows)
    result = fake.finish(
        experiment,
        spec,
        tokens=dict(zip(FOUR, given.labels.tolist(), strict=True)),
        epochs=dict(zip(FOUR, epochs.tolist(), strict=True)),
        windows=dict(zip(FOUR, given.windows.tolist(), strict=True)),
        checksum=given.checksum_text,
    )
    config = json.loads(fake.config.model_dump_json())
    (tmp_path / "out" / "config.json").write_text(json.dumps({"config": config}))
    return experiment, experiment.store.folder(spec), result


@pytest.mark.parametrize("mode", MODES)
def test_a_run_as_it_was_agrees_to_the_last_token(fake, tmp_path, mode):
    experiment, folder, result = finished(fake, mode, tmp_path)
    audit = audit_run(folder, read_tokens=True)
    assert audit.problems == ()
    assert (audit.run_id, audit.checksum) == (folder.name, result.checksum)
    assert (audit.steps, audit.num_steps) == (result.spec.num_steps, result.spec.num_steps)
    for domain in audit.domains:
        assert domain.windows == result.windows[domain.name]
        assert domain.tokens == result.tokens[domain.name]
        assert domain.epochs == result.epochs[domain.name]
        assert domain.fewest_draws == int(domain.epochs)
        assert domain.most_draws == int(np.ceil(domain.epochs))
        assert 0 < domain.documents_touched <= domain.documents <= 90
        assert domain.fewest_draws <= domain.most_drawn_document <= domain.most_draws
    assert experiment.manifest.domain(FOUR[0]).train[0].documents == 90


def test_documents_are_counted_as_the_tokens_say(fake, tmp_path):
    """Every document has tokens of its own, so that the rows themselves tell what was drawn."""
    _, folder, result = finished(fake, "best_fit", tmp_path)
    manifest = fake.experiment.manifest
    stream = RunStream(result.spec, manifest)
    drawn = [Counter() for _ in FOUR]
    for batch in stream:
        for row, domain in enumerate(batch.located.domain):
            places = batch.positions[row]
            begins = np.flatnonzero(places == 0)
            for begin, end in zip(begins, [*begins[1:], int((places >= 0).sum())], strict=True):
                drawn[domain][bytes(batch.tokens[row, begin:end])] += 1
    first, *_ = audit_run(folder).domains
    # Its documents of 100 tokens are pieces of their own in rows of 129.
    assert first.documents_touched == len(drawn[0])
    assert first.most_drawn_document == max(drawn[0].values())


def changed(folder, **changes):
    path = folder / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokens", 1, "domain 'licences': .* tokens recounted, the record says 1"),
        ("epochs", 0.5, "domain 'licences': .* epochs recounted, the record says 0.5"),
        ("windows", 3, "domain 'licences': .* windows recounted, the record says 3"),
    ],
)
def test_a_changed_count_is_found(fake, tmp_path, key, value, message):
    _, folder, result = finished(fake, "contiguous", tmp_path)
    changed(folder, **{key: {**getattr(result, key), "licences": value}})
    [problem] = audit_run(folder).problems
    assert re.search(message, problem)


def test_other_tokens_in_the_shards_are_found_only_by_reading_them(tmp_path):
    fake = FakeExperiment(tmp_path, **SMALL)
    _, folder, _ = finished(fake, "contiguous", tmp_path)
    path = next(tmp_path.glob("shards/licences/train-*.bin"))
    content = bytearray(path.read_bytes())
    content[2_000] ^= 1
    path.write_bytes(content)
    assert audit_run(folder).problems == ()
    [problem] = audit_run(folder, read_tokens=True).problems
    assert "other tokens lie in the shards now" in problem


def test_changed_settings_are_found(fake, tmp_path):
    _, folder, result = finished(fake, "contiguous", tmp_path)
    changed(folder, spec=result.spec.to_dict() | {"seed": 5})
    assert "the record's settings make run" in audit_run(folder).problems[0]


def test_other_data_is_found(fake, tmp_path):
    _, folder, _ = finished(fake, "contiguous", tmp_path)
    other = FakeExperiment(tmp_path / "other", **{**SMALL, "available": 9_500})
    problems = audit_run(folder, manifest_path=other.config.manifest_path).problems
    assert "describes other data than the run was trained on" in problems[0]


def test_a_run_in_progress_is_compared_with_its_last_metrics(fake, tmp_path):
    experiment, folder, result = finished(fake, "contiguous", tmp_path)
    order = RunStream(result.spec, experiment.manifest).order
    (folder / "result.json").unlink()
    with pytest.raises(ValueError, match="has logged nothing yet"):
        audit_run(folder)
    lines = []
    for step in (10, 20):
        epochs = order.epochs(step * result.spec.sequences_per_batch)
        found = {f"epochs/{name}": value for name, value in zip(FOUR, epochs, strict=True)}
        lines.append(json.dumps({"kind": "training", "step": step, **found}))
    lines += [json.dumps({"kind": "evaluation", "step": 20}), '{"kind": "trai']
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    audit = audit_run(folder)
    assert (audit.steps, audit.problems) == (20, ())
    with pytest.raises(ValueError, match="no checksum to compare with: it is not finished"):
        audit_run(folder, read_tokens=True)


def test_what_is_no_run_is_refused(fake, tmp_path):
    with pytest.raises(ValueError, match=r"no folder of a run: it has neither result.json nor"):
        audit_run(tmp_path)
    _, folder, _ = finished(fake, "contiguous", tmp_path)
    (tmp_path / "out" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config.json does not exist, .*; give --manifest"):
        audit_run(folder)


def test_a_run_of_an_older_version_has_no_checksum(fake, tmp_path):
    _, folder, _ = finished(fake, "contiguous", tmp_path)
    changed(folder, checksum=None, windows=None)
    assert audit_run(folder).problems == ()
    with pytest.raises(ValueError, match="an older version trained it"):
        audit_run(folder, read_tokens=True)


def test_a_run_whose_weights_changed_is_recounted_by_its_rounds(fake, tmp_path):
    experiment, _, result = finished(fake, "contiguous", tmp_path)
    spec = replace(result.spec, online={"method": "ado"})
    batch = spec.sequences_per_batch
    others = [0] * (len(spec.domains) - 1)
    rounds = [[batch, *others], [*others, sum(spec.sequences) - batch]]
    online = {"weights": {}, "stages": rounds}
    stream = RunStream(replace(result, spec=spec, online=online).drawn, experiment.manifest)
    for _ in stream:
        pass
    given, names = stream.delivery, spec.domains
    live = replace(
        result,
        spec=spec,
        online=online,
        tokens=dict(zip(names, given.labels.tolist(), strict=True)),
        windows=dict(zip(names, given.windows.tolist(), strict=True)),
        epochs=dict(zip(names, (given.windows / stream.order.num_windows).tolist(), strict=True)),
        checksum=given.checksum_text,
    )
    folder = experiment.store.start(spec)
    with pytest.raises(ValueError, match="change while it trains, and its result will have them"):
        audit_run(folder, manifest_path=experiment.config.manifest_path)
    live.save(folder)
    manifest = experiment.config.manifest_path
    assert audit_run(folder, manifest_path=manifest, read_tokens=True).problems == ()
    replace(live, online=None).save(folder)
    assert audit_run(folder, manifest_path=manifest).problems
