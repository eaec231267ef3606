import json

import pytest

from autoscale.model_shape import SHORT_NAMES, model_size, resolve_model

DATA = {"vocab_size": 300, "end_of_text_id": 7, "sequence_length": 32}


@pytest.mark.parametrize("name", SHORT_NAMES)
def test_short_names_take_vocabulary_and_length_of_the_data(name):
    fields = resolve_model(name, {}, **DATA)
    assert fields["vocab_size"] == 300
    assert fields.get("n_positions", fields.get("max_position_embeddings")) == 32
    assert fields["eos_token_id"] == 7
    size = model_size(fields, 32)
    assert size.flops_per_token > 6 * size.matrix_parameters


def test_published_sizes():
    gpt2 = {"vocab_size": 50257, "end_of_text_id": 50256, "sequence_length": 1024}
    assert model_size(resolve_model("gpt2", {}, **gpt2), 1024).parameters == 124_439_808
    assert model_size(resolve_model("gpt2-large", {}, **gpt2), 1024).parameters == 774_030_080
    llama = {"vocab_size": 32000, "end_of_text_id": 2, "sequence_length": 4096}
    assert model_size(resolve_model("llama-7b", {}, **llama), 4096).parameters == 6_738_415_616


def test_overrides_and_local_files(tmp_path):
    fields = resolve_model("gpt2-nano", {"n_layer": 1}, **DATA)
    (tmp_path / "config.json").write_text(json.dumps(fields | {"vocab_size": 512}))
    again = resolve_model(str(tmp_path), {"n_embd": 32}, **DATA)
    assert (again["n_layer"], again["n_embd"], again["vocab_size"]) == (1, 32, 512)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"model.overrides.n_layers: .* did you mean 'n_layer'\?"):
        resolve_model("gpt2-nano", {"n_layers": 1}, **DATA)
    with pytest.raises(ValueError, match="vocabulary of 200 but the data's tokenizer has 300"):
        resolve_model("gpt2-nano", {"vocab_size": 200}, **DATA)
    with pytest.raises(ValueError, match=r"16 positions .* data.sequence_length is 32"):
        resolve_model("gpt2-nano", {"n_positions": 16}, **DATA)
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "gpt2", "auto_map": {"AutoConfig": "x.Y"}}')
    with pytest.raises(ValueError, match="remote code is never run"):
        resolve_model(str(path), {}, **DATA)
    path.write_text("{}")
    with pytest.raises(ValueError, match="has no 'model_type'"):
        resolve_model(str(path), {}, **DATA)
    path.write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        resolve_model(str(path), {}, **DATA)


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"did you mean 'gpt2-large'\?"):
        resolve_model("gpt2-lage", {}, **DATA)
    with pytest.raises(ValueError, match=r"known are gpt2-nano, "):
        resolve_model("zzzz", {}, **DATA)


def test_a_hub_that_does_not_answer_is_said(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"the hub did not give .* 'nobody/nothing'"):
        resolve_model("nobody/nothing", {}, **DATA)


def test_there_is_no_dropout(tmp_path):
    fields = resolve_model("gpt2-nano", {}, **DATA) | {"attn_pdrop": 0.1, "hidden_dropout": 0.2}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    again = resolve_model(str(tmp_path), {}, **DATA)
    assert (again["attn_pdrop"], again["hidden_dropout"]) == (0.0, 0.0)
    with pytest.raises(ValueError, match="dropout is not supported"):
        resolve_model("gpt2-nano", {"resid_pdrop": 0.1}, **DATA)
