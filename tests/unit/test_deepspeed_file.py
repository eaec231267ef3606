import json
from pathlib import Path

import pytest

from autoscale.deepspeed_file import OWNED_BY_EXPERIMENT, load_deepspeed_file

SHIPPED = sorted((Path(__file__).parents[2] / "ds_configs").glob("*.json"))


def test_all_stages_are_shipped():
    assert {path.stem for path in SHIPPED} == {"zero0", "zero1", "zero2", "zero3", "zero3_offload"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_hold_no_owned_key(path):
    settings = load_deepspeed_file(path)
    assert settings["zero_optimization"]["stage"] == int(path.stem[4])


@pytest.mark.parametrize("key", OWNED_BY_EXPERIMENT)
def test_owned_keys_are_refused_with_their_owner(tmp_path, key):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({key: 1}))
    with pytest.raises(ValueError, match=f"sets '{key}', which the experiment owns"):
        load_deepspeed_file(path)


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), ("[]", "no JSON object")])
def test_unreadable_files_are_refused(tmp_path, text, message):
    path = tmp_path / "ds.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_deepspeed_file(path)
    with pytest.raises(ValueError, match="does not exist; see ds_configs"):
        load_deepspeed_file(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"torch_autocast": {"enabled": True}}, "sets 'torch_autocast', which may change"),
        ({"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}, "rounds what is"),
    ],
)
def test_what_would_change_losses_unseen_is_refused(tmp_path, settings, message):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        load_deepspeed_file(path)
