import json

import pytest

from autoscale.model import build_model
from autoscale.model_shape import SHORT_NAMES, check_masked, is_masked, model_size, resolve_model

DATA = {"vocab_size": 300, "end_of_text_id": 7, "sequence_length": 32}


@pytest.mark.parametrize("name", SHORT_NAMES)
def test_short_names_take_vocabulary_and_length_of_the_data(name):
    fields = resolve_model(name, {}, **DATA)
    assert fields["vocab_size"] == 300 + is_masked(fields)
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

    bert = {"vocab_size": 30521, "end_of_text_id": 0, "sequence_length": 512}  # and a mask token
    assert model_size(resolve_model("bert-base", {}, **bert), 512).parameters == 109_514_298


MODERN = {
    "model_type": "modernbert", "vocab_size": 310, "hidden_size": 48, "intermediate_size": 72,
    "num_hidden_layers": 3, "num_attention_heads": 3, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize("name", ["gpt2-micro", "llama-micro", "bert-nano", "modernbert"])
def test_counts_are_those_of_the_model_that_is_built(name, tmp_path):
    path = tmp_path / "modernbert"
    path.write_text(json.dumps(MODERN))
    fields = resolve_model(str(path) if name == "modernbert" else name, {}, **DATA)
    model = build_model(fields, seed=0, activation_checkpointing=False)
    assert model_size(fields, 32).parameters == model.num_parameters()
    matrices = sum(
        parameter.numel()
        for label, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.ndim == 2
        and "embed" not in label
        and not label.endswith(("wte.weight", "wpe.weight"))
    )
    assert model_size(fields, 32).matrix_parameters == matrices


def test_a_masked_model_has_a_mask_token_of_its_own_or_of_the_tokenizer():
    fields = resolve_model("bert-nano", {}, **DATA)
    assert (fields["vocab_size"], fields["mask_token_id"]) == (301, 300)
    fields = resolve_model("bert-nano", {}, mask_token_id=4, **DATA)
    assert (fields["vocab_size"], fields["mask_token_id"]) == (300, 4)
    with pytest.raises(ValueError, match="has 301 tokens with the mask token"):
        resolve_model("bert-nano", {"vocab_size": 300}, **DATA)
    assert "mask_token_id" not in resolve_model("gpt2-nano", {}, mask_token_id=4, **DATA)


def test_what_a_masked_model_cannot_do_is_refused(tmp_path):
    masked, causal = (resolve_model(name, {}, **DATA) for name in ("bert-nano", "gpt2-nano"))
    check_masked([masked, masked], packing="contiguous", metric="nats")
    check_masked([causal], packing="best_fit", metric="bits_per_byte")
    with pytest.raises(ValueError, match="name causal and masked language models"):
        check_masked([masked, causal], packing="contiguous", metric="nats")
    with pytest.raises(ValueError, match=r"data.packing 'best_fit' with a masked language model"):
        check_masked([masked], packing="best_fit", metric="nats")
    with pytest.raises(ValueError, match=r"fit.metric 'bits_per_byte' with a masked"):
        check_masked([masked], packing="contiguous", metric="bits_per_byte")
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "roberta"}')
    with pytest.raises(ValueError, match="bert and modernbert are supported"):
        resolve_model(str(path), {}, **DATA)


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
