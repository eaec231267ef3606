import json
import os
import shutil

import pytest

from autoscale.initial_weights import require_fitting, tensor_files, weights_digest
from autoscale.model_shape import resolve_model
from tests.unit.fake_experiment import FakeExperiment

VOCABULARY = {"a": 0, "b": 1, "c": 2}


def fields(name="gpt2-nano", vocab_size=2048):
    return resolve_model(name, {}, vocab_size=vocab_size, end_of_text_id=0, sequence_length=128)


def write_model(folder, *, files=("model.safetensors",), config=None, vocabulary=None, seed=0):
    """A model's folder; the tensor files are only read as bytes here."""
    folder.mkdir()
    for number, name in enumerate(files):
        (folder / name).write_bytes(bytes([seed, number]) * 1000)
    (folder / "config.json").write_text(json.dumps(config or fields()))
    if vocabulary is not None:
        content = {"model": {"vocab": vocabulary}, "added_tokens": [{"id": 3, "content": "<end>"}]}
        (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def test_the_digest_follows_the_weights_and_nothing_else(tmp_path):
    first = write_model(tmp_path / "first")
    same = write_model(tmp_path / "same", vocabulary=VOCABULARY)
    other = write_model(tmp_path / "other", seed=1)
    cache = tmp_path / "weights.json"
    digests = [weights_digest(folder, cache) for folder in (first, same, other)]
    assert digests[0] == digests[1] != digests[2]
    assert len(digests[0]) == 64


def test_the_digest_is_kept_until_a_file_changes(tmp_path):
    folder = write_model(tmp_path / "model")
    cache = tmp_path / "out" / "weights.json"
    digest = weights_digest(folder, cache)
    content = json.loads(cache.read_text())
    content["digests"][0]["digest"] = "kept"
    cache.write_text(json.dumps(content))
    assert weights_digest(folder, cache) == "kept"
    weights = folder / "model.safetensors"
    before = weights.stat()
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert weights_digest(folder, cache) == digest
    weights.write_bytes(b"x" * before.st_size)
    assert weights_digest(folder, cache) != digest
    assert len(json.loads(cache.read_text())["digests"]) == 1


def test_tensor_files_are_those_of_the_index(tmp_path):
    parts = ("model-00001.safetensors", "model-00002.safetensors")
    folder = write_model(tmp_path / "model", files=(*parts, "extra.safetensors"))
    index = {"weight_map": dict(zip("ab", parts, strict=True))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [path.name for path in tensor_files(folder)] == list(parts)
    (folder / parts[1]).unlink()
    with pytest.raises(ValueError, match=r"lacks model-00002\.safetensors, which its index lists"):
        tensor_files(folder)


def test_a_folder_without_tensors_is_refused(tmp_path):
    folder = write_model(tmp_path / "model", files=("pytorch_model.bin",))
    with pytest.raises(ValueError, match=r"holds no \*\.safetensors"):
        tensor_files(folder)


def fits(folder, *, model=None, vocab_size=2048, tokenizer=None):
    require_fitting(folder, model or fields(), vocab_size=vocab_size, tokenizer=tokenizer)


def test_weights_of_the_same_model_fit(tmp_path):
    fits(write_model(tmp_path / "model"))
    longer = fields("llama-nano") | {"max_position_embeddings": 4096}
    fits(write_model(tmp_path / "longer", config=longer), model=fields("llama-nano"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"n_layer": 3}, r"n_layer is 3 in .*config\.json, but the experiment's model has 2"),
        ({"n_embd": 96}, "n_embd is 96"),
        ({"n_head": 4}, "n_head is 4"),
        ({"vocab_size": 50257}, "vocab_size is 50257 .* has 2048; leave model.name out"),
        ({"n_positions": 64}, "n_positions is 64"),
        ({"model_type": "opt"}, "model_type is 'opt'"),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path, changes, message):
    folder = write_model(tmp_path / "model", config=fields() | changes)
    with pytest.raises(ValueError, match=message):
        fits(folder)


def test_a_folder_without_a_config_is_refused(tmp_path):
    folder = write_model(tmp_path / "model")
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json does not exist; expected a model's folder"):
        fits(folder)


def test_weights_of_another_tokenizer_are_refused(tmp_path):
    folder = write_model(tmp_path / "model", vocabulary=VOCABULARY)
    fits(folder, vocab_size=4)
    with pytest.raises(ValueError, match=r"has a vocabulary of 4, but that of the data has 2048"):
        fits(folder)
    other = write_model(tmp_path / "other", vocabulary={"a": 0, "b": 2, "c": 1})
    fits(folder, vocab_size=4, tokenizer=folder)
    with pytest.raises(ValueError, match="has other tokens than that of the data"):
        fits(folder, vocab_size=4, tokenizer=other)
    pieces = write_model(tmp_path / "pieces", vocabulary=[["a", -1.0], ["b", -2.0], ["c", -3.0]])
    fits(folder, vocab_size=4, tokenizer=pieces)


def test_an_experiment_that_starts_from_weights_has_runs_of_its_own(tmp_path):
    (tmp_path / "weights").mkdir()
    start = write_model(tmp_path / "weights" / "model")
    copy = tmp_path / "weights" / "copy"
    shutil.copytree(start, copy)

    def experiment(name, model):
        folder = tmp_path / name
        folder.mkdir()
        return FakeExperiment(folder, tables={"model": model}).experiment

    random = experiment("random", {"name": "gpt2-nano"})
    given = experiment("given", {"name": "gpt2-nano", "start_from": str(start)})
    same = experiment("same", {"name": "gpt2-nano", "start_from": str(copy)})
    alone = experiment("alone", {"name": None, "start_from": str(copy)})
    identities = [
        [planned.spec.identity for planned in each.probes()]
        for each in (random, given, same, alone)
    ]
    assert identities[1] == identities[2] == identities[3]
    assert not set(identities[0]) & set(identities[1])
    spec = same.probes()[0].spec
    assert same.execution(spec, export=False).start_from == str(copy)
    assert random.execution(random.probes()[0].spec, export=False).start_from is None
    targets = same.targets({"reference": same.reference})
    assert {target.spec.start_from for target in targets} == {spec.start_from} != {""}


def test_a_probe_budget_may_start_from_weights_of_its_own(tmp_path):
    start = write_model(tmp_path / "model")
    folder = tmp_path / "experiment"
    folder.mkdir()
    budgets = [{"tokens": "80K", "model": {"start_from": str(start)}}, "160K"]
    experiment = FakeExperiment(
        folder, tables={"probe": {"budgets": budgets, "reference_seeds": 3}}
    ).experiment
    started = {
        planned.token_budget: bool(planned.spec.start_from) for planned in experiment.probes()
    }
    assert started == {80_000: True, 160_000: False}
    assert not experiment.targets({"reference": experiment.reference})[0].spec.start_from


def test_a_mask_token_that_an_export_was_given_is_no_other_vocabulary(tmp_path):
    model = fields("bert-nano", vocab_size=4)
    masked = VOCABULARY | {"<|mask|>": 4}
    folder = write_model(tmp_path / "model", config=model, vocabulary=masked)
    data = write_model(tmp_path / "data", vocabulary=VOCABULARY)
    fits(folder, model=model, vocab_size=4, tokenizer=data)
    other = write_model(tmp_path / "other", vocabulary={"a": 0, "b": 1, "x": 2})
    with pytest.raises(ValueError, match="has other tokens than that of the data"):
        fits(folder, model=model, vocab_size=4, tokenizer=other)
