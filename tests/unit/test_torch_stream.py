"""The stream in PyTorch: what models are given, loaders with workers, weights on all ranks."""

import itertools
import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from autoscale.mixture_stream import MixtureStream
from autoscale.torch_stream import MixtureDataset, broadcast_weights, to_tensors
from tests.unit.token_data import write_data

DOMAINS = {"web": [[90, 40], [60]], "code": [[30, 30, 50]]}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), DOMAINS, vocab_size=512)


def open_stream(manifest, **changes):
    settings = {"weights": [2, 1], "num_samples": 60, "sequence_length": 8, "batch_size": 4}
    return MixtureStream(manifest, **settings | changes)


# --- what models are given ------------------------------------------------------------------------


def test_every_label_is_the_token_after_its_input(manifest):
    for item, batch in zip(
        MixtureDataset(open_stream(manifest)), open_stream(manifest), strict=True
    ):
        assert set(item) == {"input_ids", "labels", "shift_labels"}
        assert all(tensor.dtype == torch.int64 for tensor in item.values())
        assert np.array_equal(item["input_ids"].numpy(), batch.tokens[:, :-1])
        assert np.array_equal(item["labels"].numpy(), batch.tokens[:, 1:])


@pytest.mark.parametrize("packing", ["contiguous", "whole_documents", "best_fit"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_transformers_models_take_a_batch_as_it_is(manifest, packing, attention):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, attn_implementation=attention,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    batch = open_stream(manifest, packing=packing).batch(3)
    item = to_tensors(batch)
    # The loss of each document by itself, each token predicted from those before it.
    losses = []
    for tokens in documents(batch):
        logits = model(input_ids=tokens[None, :-1]).logits[0]
        losses.append(cross_entropy(logits, tokens[1:], reduction="none"))
    assert sum(loss.numel() for loss in losses) == int((item["labels"] >= 0).sum())
    torch.testing.assert_close(model(**item).loss, torch.cat(losses).mean())


def documents(batch):
    """Tokens of the pieces that are predicted by themselves."""
    tokens = torch.from_numpy(batch.tokens.astype(np.int64))
    if batch.positions is None:
        yield from tokens
        return
    for row, positions in zip(tokens, torch.from_numpy(batch.positions), strict=True):
        begins = [*torch.nonzero(positions == 0).ravel().tolist(), int((positions >= 0).sum())]
        for begin, end in itertools.pairwise(begins):
            yield row[begin:end]


# --- loaders --------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_loaders_give_the_batches_of_the_stream_in_order(manifest, num_workers):
    stream = open_stream(manifest)
    stream.load_state_dict(stream.state_dict(position=8))
    dataset = MixtureDataset(stream)
    loader = DataLoader(dataset, batch_size=None, num_workers=num_workers)
    plain = open_stream(manifest)
    assert len(loader) == plain.num_steps == 15
    found = [item["input_ids"].numpy() for item in loader]
    assert len(found) == 13
    for step, tokens in enumerate(found, start=2):
        assert np.array_equal(tokens, plain.batch(step).inputs)
    if num_workers:
        with pytest.raises(ValueError, match="read by workers of a loader, which are ahead of the"):
            dataset.state_dict()
        assert dataset.state_dict(position=60) == stream.state_dict(position=60)
    else:
        assert dataset.state_dict() == stream.state_dict(position=60)


def test_a_dataset_goes_on_where_its_state_was_taken(manifest):
    dataset = MixtureDataset(open_stream(manifest))
    batches = iter(dataset)
    for _ in range(7):
        next(batches)
    state = json.loads(json.dumps(dataset.state_dict()))
    rest = [item["input_ids"] for item in batches]
    other = MixtureDataset(open_stream(manifest))
    other.load_state_dict(state)
    for item, expected in zip(other, rest, strict=True):
        assert torch.equal(item["input_ids"], expected)


# --- weights on all ranks -------------------------------------------------------------------------


def on_two_ranks(test, tmp_path: Path, manifest) -> None:
    """Run `test(rank, manifest)` in two processes of a gloo group; an error of either fails."""
    context = multiprocessing.get_context("spawn")
    arguments = (test, str(tmp_path / "store"), manifest.root / "manifest.json")
    processes = [context.Process(target=one_rank, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0, process


def one_rank(rank: int, test, store: str, manifest: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    test(rank, manifest)
    dist.destroy_process_group()


def change_weights_together(rank, manifest):
    stream = open_stream(manifest, num_samples=None, rank=rank, world_size=2)
    alone = open_stream(manifest, num_samples=None)
    single = dist.new_group([0])
    for batch, whole in zip(stream, alone, strict=False):
        parts = [None, None]
        dist.all_gather_object(parts, batch.tokens)
        assert np.array_equal(np.concatenate(parts), whole.tokens)
        if batch.step == 3:  # what rank 1 asks for does not count
            broadcast_weights(stream, [1 / 3, 2 / 3] if rank == 0 else [5, 0])
            alone.change_weights([1 / 3, 2 / 3])
        if batch.step == 5:
            broadcast_weights(stream, None)  # only compares
        if batch.step == 9:
            broadcast_weights(stream, {"web": 0, "code": 1} if rank == 0 else None, 12)
            alone.change_weights([0, 1], 12)
    assert batch.step == 12 and stream.num_steps == 13
    drawn = torch.from_numpy(stream.delivered)
    dist.all_reduce(drawn)
    assert drawn.tolist() == stream.order.drawn(52).tolist() == alone.delivered.tolist()
    if rank == 0:
        broadcast_weights(stream, [1, 1], 4, group=single)
        assert stream.num_steps == 14


def refuse_together(rank, manifest):
    stream = open_stream(manifest, num_samples=None, rank=rank, world_size=2)
    before = stream.state_dict()

    def refuses(message, weights, num_samples=None):
        with pytest.raises(ValueError, match=message):
            broadcast_weights(stream, weights, num_samples)
        assert stream.state_dict()["order"] == before["order"]

    refuses(r"rank 0: .*weights lacks domain 'code'", {"web": 1})
    refuses("rank 0: .*nan", [1, float("nan")])
    refuses("rank 0: .*1 after the last whole batch", [1, 1], 5)
    if rank == 1:
        next(iter(stream))
    refuses("says rank 1: it stands at sample 4 and rank 0 at 0: change the weights", [1, 1])
    refuses("says rank 1: it stands at sample 4", None)
    other = open_stream(manifest, num_samples=None, rank=rank, world_size=2, seed=rank)
    with pytest.raises(ValueError, match="rank 1 draws in another order than rank 0; start all"):
        broadcast_weights(other, [1, 1])


@pytest.mark.slow
@pytest.mark.parametrize("test", [change_weights_together, refuse_together])
def test_all_ranks_change_together_or_not_at_all(test, tmp_path, manifest):
    on_two_ranks(test, tmp_path, manifest)
