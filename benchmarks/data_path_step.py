"""What the data path costs in training: steps of the demo's model with it and without it."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import torch
from data_path_measure import median_interval, verdict
from data_path_throughput import Setting
from data_path_workload import write_manifest

from autoscale.config import load_config
from autoscale.mixture_stream import MixtureStream
from autoscale.model import build_model, parameter_groups
from autoscale.model_shape import resolve_model
from autoscale.prefetch import Prefetcher

_GOAL: Final = 0.01
_DEMO: Final = Path(__file__).parents[1] / "launch" / "experiments" / "demo.toml"
_TOKENS_OF_DOMAIN: Final = 500_000
_WARM_UP, _TRIPLES = 30, 400
_ARMS: Final = (
    "replayed tensors",
    "`MixtureStream.batch`",
    "`Prefetcher`, depth 0 (the trainer's on CPUs)",
    "`Prefetcher`, depth 2 (a thread; the trainer's on GPUs)",
)


def step(setting: Setting) -> Iterator[str]:
    config = load_config(_DEMO)
    vocab_size = config.prepare.tokenizer.vocab_size
    length = config.data.sequence_length
    rows = config.trainer.global_batch_tokens // length
    with TemporaryDirectory() as folder:
        manifest = _write_tokens(Path(folder), vocab_size)
        direct, *others = (
            MixtureStream(manifest, sequence_length=length, batch_size=rows, weights=[1.0] * 4)
            for _ in range(3)
        )
        fields = resolve_model(
            config.model.name,
            {},
            vocab_size=vocab_size,
            end_of_text_id=0,
            sequence_length=length,
        )
        trainer = _Trainer(fields, lr=config.trainer.lr)
        seconds, waited = _measure(direct, others, trainer)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    yield (
        f"The demo's {config.model.name} ({parameters / 1e6:.2f}M parameters), batches of {rows} x "
        f"{length} tokens, float32, AdamW, plain torch in one process, "
        f"{torch.get_num_threads()} thread; {_TRIPLES} rounds of steps that differ in where their "
        "tokens come from. Wait: from asking for a batch to having its int64 tensor, mean. "
        "Longer: the step than the one with replayed tensors beside it, median of pairs and its "
        "95% bootstrap interval."
    )
    yield ""
    yield "| tokens from | step, ms | wait, microseconds | wait / step | step longer by | goal |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for arm, name in enumerate(_ARMS):
        share = waited[:, arm].sum() / seconds[:, arm].sum()
        longer, low, high = median_interval(seconds[:, arm] / seconds[:, 0] - 1)
        columns = f"{longer:+.2%} ({low:+.2%} to {high:+.2%}) | {verdict(share < _GOAL)}"
        yield (
            f"| {name} | {np.median(seconds[:, arm]) * 1e3:.2f} | "
            f"{waited[:, arm].mean() * 1e6:.1f} | {share:.3%} | {columns if arm else ' | '} |"
        )
    yield ""
    yield f"Goal: a wait below {_GOAL:.0%} of the step."


class _Trainer:
    """One optimiser step on given tokens."""

    def __init__(self, fields: dict, *, lr: float) -> None:
        self.model = build_model(fields, seed=0, activation_checkpointing=False)
        self._optimizer = torch.optim.AdamW(parameter_groups(self.model, 0.1), lr=lr, fused=True)

    def step(self, tokens: torch.Tensor) -> None:
        """tokens: int64, shape (rows, length + 1)."""
        logits = self.model(input_ids=tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


def _measure(
    direct: MixtureStream, others: Sequence[MixtureStream], trainer: _Trainer
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of each step, and of them until its tokens were there; shape (triples, arms)."""
    seconds, waited = np.empty((2, _WARM_UP + _TRIPLES, len(_ARMS)))
    replayed = [torch.from_numpy(direct.batch(n).tokens.astype(np.int64)) for n in range(16)]
    out = np.empty(direct.shape, dtype=np.int64)
    on_demand, in_thread = others
    with Prefetcher(on_demand, depth=0) as plain, Prefetcher(in_thread, depth=2) as prefetcher:
        on_demand_batches, ahead = iter(plain), iter(prefetcher)
        for triple in range(len(seconds)):
            for turn in range(len(_ARMS)):
                arm = (triple + turn) % len(_ARMS)
                start = time.perf_counter()
                if arm == 0:
                    tokens = replayed[triple % len(replayed)]
                elif arm == 1:
                    tokens = torch.from_numpy(direct.batch(triple, out).tokens)
                else:
                    tokens = next(on_demand_batches if arm == 2 else ahead).tokens
                ready = time.perf_counter()
                trainer.step(tokens)
                seconds[triple, arm] = time.perf_counter() - start
                waited[triple, arm] = ready - start
        on_demand_batches.close()
        ahead.close()
    return seconds[_WARM_UP:], waited[_WARM_UP:]


def _write_tokens(folder: Path, vocab_size: int) -> Path:
    generator = np.random.default_rng(0)
    documents = {
        f"domain-{number}": np.split(
            generator.integers(0, vocab_size, _TOKENS_OF_DOMAIN, dtype=np.uint16), 100
        )
        for number in range(4)
    }
    return write_manifest(folder, documents, vocab_size=vocab_size)
