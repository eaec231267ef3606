"""Tokens a second and MFU of one device: our training loop beside the same model in bare loops.

    python benchmarks/gpu_throughput.py --output OUT                       GPT-2 Large, bf16, a GPU
    python benchmarks/gpu_throughput.py --output OUT --model gpt2-tiny --precision fp32 \\
        --sequence-length 128 --micro-batch-size 4 --batch-size 8          a CPU

Three loops take turns, a round of steps each, in one process on one device:

    autoscale   the trainer's own loop: mixture stream, prefetcher, engine, votes, log
    DeepSpeed   an engine of the same settings, on random tokens that lie on the device
    PyTorch     the plain model in float32, autocast to bf16 where that is trained, AdamW (fused)

Ratios are of rounds beside each other. Writes OUT/gpu_throughput.json and .md.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from data_path_measure import median_interval, verdict
from data_path_workload import write_manifest
from deepspeed.accelerator import get_accelerator
from deepspeed.ops import __compatible_ops__
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from autoscale.deepspeed_file import load_deepspeed_file
from autoscale.engine import build_engine
from autoscale.execution import Execution, RunHooks
from autoscale.hardware import device_name
from autoscale.manifest import Manifest
from autoscale.model import build_model, parameter_groups
from autoscale.model_shape import model_size, resolve_model
from autoscale.prefetch import Prefetcher
from autoscale.provenance import commit, library_versions
from autoscale.run_log import RunLog
from autoscale.runs import RunSpec
from autoscale.trainer import _Run

_DOMAINS: Final = ("a", "b", "c", "d")
_VOCABULARY: Final = 50257
_RUN_STEPS: Final = 2000  # of the run whose beginning is measured; it logs every twentieth
_GOALS: Final = {"of DeepSpeed": 0.97, "MFU": 0.45}
_ROOT: Final = Path(__file__).parents[1]


def main() -> None:
    options = _options()
    with TemporaryDirectory() as folder:
        _start_process_group()
        spec, execution = _run_of(options, Path(folder))
        trainer = _Run(spec, execution, _hooks())
        loops = {
            "autoscale": _ours(trainer, options.steps),
            "DeepSpeed": _deepspeed(spec, execution, options.steps),
            "PyTorch": _pytorch(spec, execution, options.steps),
        }
        seconds = _measure(list(loops.values()), rounds=options.rounds, warm_up=options.warm_up)
        result = _result(options, spec, trainer, list(loops), seconds)
        trainer.votes.close()
        dist.destroy_process_group()
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "gpu_throughput.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.output / "gpu_throughput.md").write_text(_markdown(result))
    print(_markdown(result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default="gpt2-large")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument("--micro-batch-size", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=64, help="sequences a step")
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--deepspeed", type=Path, default=_ROOT / "ds_configs" / "zero1.json")
    parser.add_argument("--steps", type=int, default=5, help="of a round")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--warm-up", type=int, default=2, help="rounds that are not counted")
    return parser.parse_args()


def _start_process_group() -> None:
    """One rank; the shared-memory operator of CPUs would be compiled for a minute."""
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    on_cpu = get_accelerator().device_name() == "cpu"
    if on_cpu:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        __compatible_ops__["deepspeed_shm_comm"] = False
    backend = "gloo" if on_cpu else "nccl"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(dist_backend=backend, verbose=False)


def _run_of(options: argparse.Namespace, folder: Path) -> tuple[RunSpec, Execution]:
    """A run over four domains of random tokens, as an experiment would plan it."""
    length, batch = options.sequence_length, options.batch_size
    assert options.steps * (options.rounds + options.warm_up) < _RUN_STEPS
    generator = np.random.default_rng(0)
    manifest = write_manifest(
        folder / "shards",
        {
            name: np.split(
                generator.integers(0, _VOCABULARY, 64 * length + 1, dtype=np.uint16), [length]
            )
            for name in _DOMAINS
        },
        vocab_size=_VOCABULARY,
        validation_tokens=2 * length,
    )
    spec = RunSpec(
        label="throughput",
        domains=_DOMAINS,
        sequences=tuple(np.diff(np.linspace(0, _RUN_STEPS * batch, 5).astype(int)).tolist()),
        sequence_length=length,
        seed=0,
        model=resolve_model(
            options.model, {}, vocab_size=_VOCABULARY, end_of_text_id=0, sequence_length=length
        ),
        optimisation={
            "sequences_per_batch": batch, "lr": 2e-4, "warmup_fraction": 0.02,
            "min_lr_ratio": 0.1, "schedule": "cosine", "decay_fraction": 0.2, "betas": (0.9, 0.95),
            "eps": 1e-8, "weight_decay": 0.1, "grad_clip": 1.0, "precision": options.precision,
        },
        evaluation={"domains": list(_DOMAINS), "sequences_per_domain": 1, "points": 1},
        data=Manifest.load(manifest).fingerprint,
    )  # fmt: skip
    execution = Execution(
        manifest=str(manifest),
        folder=str(folder / "run"),
        deepspeed=load_deepspeed_file(options.deepspeed),
        micro_batch_size=options.micro_batch_size,
        activation_checkpointing=options.activation_checkpointing,
        save_every=None,
        save_seconds=None,
        keep_last=1,
        staging=None,
        keep_checkpoints=False,
        step_timeout=1800,
        peak_tflops=None,
        start_from=None,
        export=None,
    )
    return spec, execution


def _hooks() -> RunHooks:
    return RunHooks(progress=lambda _: None, alive=lambda _: None, stop_reason=lambda: None)


def _ours(run: Any, steps: int) -> Callable[[], None]:
    """A round of the trainer's own loop."""
    run.log = RunLog(run.folder, 0, run.spec.tokens_per_batch)
    depth = 0 if run.device.type == "cpu" else 2
    batches = Prefetcher(run.stream, range(run.spec.num_steps), run.device, depth).__enter__()
    ahead, done = iter(batches), 0

    def train() -> None:
        nonlocal done
        run._train(islice(ahead, steps), done)
        done += steps

    return train


def _deepspeed(spec: RunSpec, execution: Execution, steps: int) -> Callable[[], None]:
    micro_batch = execution.micro_batch_size
    engine = build_engine(spec, execution, micro_batch_size=micro_batch)
    tokens = _tokens(spec, engine.device)

    def train() -> None:
        for _ in range(steps):
            for part in tokens.split(micro_batch):
                engine.backward(_loss(engine, part))
                engine.step()

    return train


def _pytorch(spec: RunSpec, execution: Execution, steps: int) -> Callable[[], None]:
    device = torch.device(get_accelerator().current_device_name())
    model = build_model(
        spec.model, seed=0, activation_checkpointing=execution.activation_checkpointing
    ).to(device)
    model.train()
    optimizer = torch.optim.AdamW(
        parameter_groups(model, 0.1), lr=2e-4, betas=(0.9, 0.95), fused=True
    )
    tokens = _tokens(spec, device)
    parts = tokens.split(execution.micro_batch_size)
    to_bf16 = spec.optimisation["precision"] == "bf16"

    def train() -> None:
        for _ in range(steps):
            for part in parts:
                with torch.autocast(device.type, torch.bfloat16, enabled=to_bf16):
                    loss = _loss(model, part)
                (loss / len(parts)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return train


def _tokens(spec: RunSpec, device: torch.device) -> torch.Tensor:
    """A batch, shape (B, T + 1)."""
    generator = torch.Generator().manual_seed(1)
    shape = (spec.sequences_per_batch, spec.sequence_length + 1)
    return torch.randint(0, _VOCABULARY, shape, generator=generator).to(device)


def _loss(model: Any, tokens_BT: torch.Tensor) -> torch.Tensor:
    logits_BTV = model(input_ids=tokens_BT[:, :-1], use_cache=False).logits
    return cross_entropy(logits_BTV.float().flatten(0, 1), tokens_BT[:, 1:].flatten())


def _measure(
    loops: Sequence[Callable[[], None]], *, rounds: int, warm_up: int
) -> NDArray[np.float64]:
    """Seconds of every round of every loop, shape (rounds, loops)."""
    seconds = np.empty((warm_up + rounds, len(loops)))
    for turn in range(len(seconds)):
        for place in range(len(loops)):
            loop = (turn + place) % len(loops)
            get_accelerator().synchronize()
            start = time.perf_counter()
            loops[loop]()
            get_accelerator().synchronize()
            seconds[turn, loop] = time.perf_counter() - start
    return seconds[warm_up:]


def _result(
    options: argparse.Namespace,
    spec: RunSpec,
    run: Any,
    names: Sequence[str],
    seconds: NDArray[np.float64],
) -> dict[str, Any]:
    size = model_size(spec.model, spec.sequence_length)
    tokens = options.steps * spec.tokens_per_batch
    loops = {}
    for index, name in enumerate(names):
        rate, low, high = median_interval(tokens / seconds[:, index])
        flops = size.flops_per_token / run.peak_flops if run.peak_flops else None
        loops[name] = {
            "tokens_per_second": [rate, low, high],
            "mfu": None if flops is None else rate * flops,
            "autoscale_against_it": list(median_interval(seconds[:, index] / seconds[:, 0])),
        }
    given = {key: str(value) if isinstance(value, Path) else value
             for key, value in vars(options).items() if key != "output"}  # fmt: skip
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": device_name(run.device),
        "processor": platform.processor() or platform.machine(),
        "load": os.getloadavg()[0],
        "versions": library_versions(),
        "cuda": torch.version.cuda,
        "commit": commit(),
        "options": given,
        "parameters": size.parameters,
        "peak_memory_bytes": (
            torch.cuda.max_memory_allocated() if run.device.type == "cuda" else None
        ),
        "loops": loops,
        "seconds": seconds.tolist(),
    }


def _markdown(result: dict[str, Any]) -> str:
    options, loops = result["options"], result["loops"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        f"{result['date']}, {result['device']}, load {result['load']:.1f} at the end; {versions}.",
        f"{options['model']} ({result['parameters'] / 1e6:.0f}M parameters), "
        f"{options['precision']}, sequences of {options['sequence_length']}, "
        f"{options['batch_size']} a step in micro-batches of {options['micro_batch_size']}, "
        f"{Path(options['deepspeed']).name}; {options['rounds']} rounds of {options['steps']} "
        "steps. Median and 95% bootstrap interval over rounds.",
        "",
        "| loop | tokens/s | MFU | autoscale's rate over it |",
        "| --- | --- | --- | --- |",
    ]
    for name, loop in loops.items():
        rate, low, high = loop["tokens_per_second"]
        mfu = "unknown" if loop["mfu"] is None else f"{loop['mfu']:.1%}"
        ratio, ratio_low, ratio_high = loop["autoscale_against_it"]
        against = (
            "" if name == "autoscale" else f"{ratio:.3f} ({ratio_low:.3f} to {ratio_high:.3f})"
        )
        lines.append(f"| {name} | {rate:,.0f} ({low:,.0f} to {high:,.0f}) | {mfu} | {against} |")
    ratio = loops["DeepSpeed"]["autoscale_against_it"][0]
    mfu = loops["autoscale"]["mfu"]
    lines += [
        "",
        f"At least {_GOALS['of DeepSpeed']} of the bare DeepSpeed loop: "
        f"{verdict(ratio >= _GOALS['of DeepSpeed'])}.",
    ]
    if result["cuda"] and mfu is not None:
        lines.append(f"MFU of {_GOALS['MFU']:.0%}: {verdict(mfu >= _GOALS['MFU'])}.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
