import dataclasses
import json

import pytest

from autoscale.runs import Evaluation, RunFailure, RunResult, RunSpec, RunStore


def make_spec(**changes):
    content = {
        "label": "probe-1M-a-up3",
        "domains": ("a", "b"),
        "sequences": (24, 8),
        "sequence_length": 16,
        "seed": 0,
        "model": {"model_type": "gpt2", "n_layer": 1},
        "optimisation": {"sequences_per_batch": 8, "lr": 1e-3, "betas": (0.9, 0.95)},
        "evaluation": {"domains": ["a", "b"], "points": 2},
        "data": "f" * 64,
    }
    return RunSpec(**{**content, **changes})


def make_result(spec):
    return RunResult(
        spec=spec,
        tokens=spec.tokens,
        epochs={"a": 1.5, "b": 0.5},
        evaluations=(
            Evaluation(tokens=256, losses={"a": 2.0, "b": 3.0}, mean_loss=2.5),
            Evaluation(tokens=512, losses={"a": 1.0, "b": 2.0}, mean_loss=1.5),
        ),
        seconds=1.0,
        tokens_per_second=512.0,
        mfu=None,
        flops=1e9,
        world_size=1,
        device="CPU",
        versions={"autoscale": "0.1.0"},
        commit=None,
        started_at="2026-01-01T00:00:00+00:00",
        finished_at="2026-01-01T00:00:01+00:00",
    )


def test_counts_follow_from_the_sequences():
    spec = make_spec()
    assert (spec.num_steps, spec.total_tokens, spec.tokens_per_batch) == (4, 512, 128)
    assert spec.tokens == {"a": 384, "b": 128}


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"sequences": (16, 16)},
        {"sequence_length": 32},
        {"domains": ("a", "c")},
        {"data": "e" * 64},
        {"model": {"model_type": "gpt2", "n_layer": 2}},
        {"optimisation": {"sequences_per_batch": 8, "lr": 2e-3, "betas": (0.9, 0.95)}},
        {"evaluation": {"domains": ["a", "b"], "points": 3}},
    ],
)
def test_what_changes_the_loss_changes_the_identity(change):
    assert make_spec(**change).identity != make_spec().identity


def test_the_label_does_not_and_json_does_not():
    spec = make_spec()
    assert make_spec(label="other").identity == spec.identity
    assert RunSpec.from_dict(spec.to_dict()).identity == spec.identity


ADDED = {
    "packing": "best_fit",
    "locality": 8,
    "share": 0.25,
    "stages": ((16, 0), (8, 8)),
    "online": {"method": "ado"},
}


def test_what_came_later_enters_the_identity_only_where_it_is_used(tmp_path):
    assert make_spec().identity == "99fb80477219"  # as before these fields were there
    known = {make_spec().identity}
    for key, value in ADDED.items():
        spec = make_spec(**{key: value})
        assert spec.identity not in known
        known.add(spec.identity)
        read = RunSpec.from_dict(spec.to_dict())
        assert getattr(read, key) == value and read.identity == spec.identity
    old = make_spec().to_dict()
    for key in ADDED:
        del old[key]
    assert RunSpec.from_dict(old).identity == "99fb80477219"


def test_the_parts_of_a_run_add_up_to_its_sequences():
    assert make_spec().quotas == ((24, 8),)
    assert make_spec(stages=((16, 0), (8, 8))).quotas == ((16, 0), (8, 8))
    with pytest.raises(AssertionError):
        make_spec(stages=((16, 0), (8, 0)))
    with pytest.raises(AssertionError):
        make_spec(stages=((12, 0), (12, 8)))


def test_an_older_result_has_no_checksum(tmp_path):
    path = make_result(make_spec()).save(tmp_path / "run")
    content = json.loads(path.read_text())
    del content["checksum"], content["windows"]
    path.write_text(json.dumps(content))
    loaded = RunResult.load(tmp_path / "run")
    assert (loaded.checksum, loaded.windows) == (None, None)


def test_a_run_whose_weights_changed_is_drawn_by_its_rounds():
    spec = make_spec(online={"method": "ado"})
    result = make_result(spec)
    assert result.drawn is spec
    live = dataclasses.replace(result, online={"weights": {}, "stages": [[12, 4], [8, 8]]})
    assert live.drawn.quotas == ((12, 4), (8, 8))
    assert (live.drawn.sequences, live.drawn.online) == ((20, 12), {})


def test_an_exported_model_is_found_by_its_run(tmp_path):
    store, spec = RunStore(root=tmp_path), make_spec()
    model = store.start(spec) / "model"
    assert store.exported_model(spec.identity) is None
    model.mkdir()
    (model / "config.json").touch()
    assert store.exported_model(spec.identity) == model
    assert store.exported_model("") is None


def test_status_follows_the_folder(tmp_path):
    store, spec = RunStore(root=tmp_path), make_spec()
    assert store.status(spec) == "waiting"
    folder = store.start(spec)
    assert store.status(spec) == "interrupted"
    RunFailure(reason="crashed", message="out of memory").save(folder)
    assert store.status(spec) == "failed"
    assert store.failure(spec).message == "out of memory"
    store.start(spec)
    assert store.status(spec) == "interrupted"
    make_result(spec).save(folder)
    assert store.status(spec) == "finished"


def test_a_finished_run_is_found_under_another_label(tmp_path):
    spec = make_spec()
    make_result(spec).save(RunStore(root=tmp_path).start(spec))
    other = dataclasses.replace(spec, label="train-1M-hold-seed0")
    assert RunStore(root=tmp_path).status(other) == "finished"
    assert RunStore(root=tmp_path).result(other).final_losses == {"a": 1.0, "b": 2.0}


def test_a_result_round_trips(tmp_path):
    result = make_result(make_spec())
    result.save(tmp_path / "run")
    loaded = RunResult.load(tmp_path / "run")
    assert loaded.spec.identity == result.spec.identity
    assert loaded.evaluations == result.evaluations
    assert loaded.final_mean_loss == 1.5


def test_forgetting_never_touches_a_finished_run(tmp_path):
    store, spec = RunStore(root=tmp_path), make_spec()
    folder = store.start(spec)
    store.forget_progress(spec)
    assert not folder.exists()
    make_result(spec).save(store.start(spec))
    store.forget_progress(spec)
    assert store.status(spec) == "finished"
