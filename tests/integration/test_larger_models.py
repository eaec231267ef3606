"""Models that no rank holds whole: ZeRO-3 from the first weight on, offload, recomputation."""

import json

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from autoscale.data import validation_windows
from autoscale.manifest import Manifest
from autoscale.memory import estimate_memory
from autoscale.model_shape import resolve_model
from tests.conftest import ROOT
from tests.integration.engine_steps import SMALL, build, train

SETTINGS = {name: json.loads((ROOT / f"ds_configs/{name}.json").read_text())
            for name in ("zero0", "zero1", "zero2", "zero3", "zero3_offload")}  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Steps with a model that is built whole, by model and precision."""
    known = {}

    def of(model, precision):
        if (model, precision) not in known:
            folder = tmp_path_factory.mktemp("plain")
            known[model, precision] = train(
                folder, 1, model=model, deepspeed=SETTINGS["zero1"], precision=precision
            )
        return known[model, precision]

    return of


@pytest.mark.parametrize(
    "model, settings, ranks, precision",
    [
        ("gpt2-nano", "zero3", 1, "fp32"),
        ("gpt2-nano", "zero3_offload", 2, "fp32"),
        ("llama-nano", "zero3", 2, "fp32"),
        ("llama-nano", "zero3", 2, "bf16"),
        ("bert-nano", "zero3", 2, "fp32"),
    ],
)
def test_a_model_built_in_pieces_is_the_plain_one(
    plain, tmp_path, model, settings, ranks, precision
):
    """Bit by bit; the losses also with recomputed activations, up to the order of sums."""
    found = train(
        tmp_path, ranks, model=model, deepspeed=SETTINGS[settings], precision=precision,
        activation_checkpointing=ranks == 2,
    )  # fmt: skip
    expected = plain(model, precision)
    assert found["weights"] == expected["weights"]
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    assert found["losses"] == pytest.approx(expected["losses"], abs=tolerance)
    assert found["trained_weights"] != found["weights"]


def test_no_rank_ever_holds_the_whole_model(tmp_path):
    """38M parameters; a rank's share, and little more than the largest matrix beside it."""
    shape = {"n_embd": 512, "n_layer": 12, "n_head": 8, "n_inner": 2048}
    task = {"overrides": shape, "vocab_size": 1000}
    whole = build(tmp_path / "whole", 1, **task, deepspeed=None, save_to=str(tmp_path / "model"))
    full = whole["full_mib"]
    assert full > 140
    assert whole["mib"][0] > 0.95 * full
    for start_from in (None, str(tmp_path / "model")):
        pieces = build(
            tmp_path / f"from-{start_from is not None}", 4, **task,
            deepspeed=SETTINGS["zero3"], start_from=start_from,
        )  # fmt: skip
        assert max(pieces["mib"]) < 0.5 * full


def test_runs_start_from_the_weights_that_another_run_ended_with(tmp_path):
    folder = tmp_path / "model"
    first = train(tmp_path / "a", 2, deepspeed=SETTINGS["zero3"], save_to=str(folder))
    again = [
        train(tmp_path / name, ranks, deepspeed=SETTINGS[name], start_from=str(folder))
        for name, ranks in (("zero1", 1), ("zero3", 2))
    ]
    assert first["trained_weights"] == again[0]["weights"] == again[1]["weights"]
    assert again[0]["losses"] == pytest.approx(again[1]["losses"], abs=1e-5)
    assert again[0]["losses"][0] < first["losses"][0]


def test_packed_rows_are_checked_where_no_rank_has_the_model(tmp_path):
    found = train(tmp_path, 2, deepspeed=SETTINGS["zero3"], packing="best_fit", steps=1)
    assert len(found["losses"]) == 1


def test_a_probe_begins_at_the_loss_of_its_initial_weights(tiny, tiny_shards, tmp_path):
    manifest = Manifest.load(tiny_shards / "manifest.json")
    fields = resolve_model(
        "gpt2-nano", {}, vocab_size=manifest.tokenizer.vocab_size, end_of_text_id=0,
        sequence_length=32,
    )  # fmt: skip
    from autoscale.model import build_model

    model = build_model(fields, seed=5, activation_checkpointing=False)
    with torch.no_grad():  # an initialisation's loss is that of any other; this one is far off
        model.transformer.wte.weight.mul_(8)
    model.save_pretrained(tmp_path / "model")
    manifest.copy_tokenizer(tmp_path / "model")
    tiny.autoscale(
        "probe", "--only", "probe-8K-reference",
        "--set", f"model={{start_from='{tmp_path}/model'}}", "--set", "trainer.lr=1e-12",
    )  # fmt: skip
    [result] = tiny.results().values()
    windows = validation_windows(manifest, manifest.domain_names, sequence_length=32, limit=21)
    for name, rows in windows.items():
        batch = torch.from_numpy(rows.tokens)
        with torch.no_grad():
            logits = model(batch[:, :-1]).logits
        loss = cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).item()
        assert loss > 8  # log(320) is 5.8
        assert result["final_losses"][name] == pytest.approx(loss, abs=1e-4)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert loaded.config.n_layer == result["spec"]["model"]["n_layer"]


@pytest.mark.parametrize(
    "settings, ranks", [("zero0", 1), ("zero1", 2), ("zero2", 2), ("zero3", 2)]
)
def test_the_estimate_is_what_engines_take(tmp_path, settings, ranks):
    """On a CPU, where the device's memory is the host's: within a quarter, at 38M parameters."""
    shape = {"n_embd": 512, "n_layer": 12, "n_head": 8, "n_inner": 2048}
    task = SMALL | {"overrides": shape, "vocab_size": 1000, "sequence_length": 64}
    found = train(tmp_path, ranks, **task, deepspeed=SETTINGS[settings])
    estimate = estimate_memory(
        resolve_model(task["model"], shape, vocab_size=1000, end_of_text_id=0, sequence_length=64),
        SETTINGS[settings],
        ranks=ranks,
        micro_batch_size=task["micro_batch_size"],
        sequence_length=64,
        precision="fp32",
        activation_checkpointing=False,
    )
    assert estimate.device_bytes / 2**20 == pytest.approx(max(found["mib"]), rel=1 / 4)
