"""A bare training loop in one process, of PyTorch or of DeepSpeed: tokens in memory, nothing else.

    python benchmarks/cluster_bare.py torch|deepspeed STEPS LAYERS WIDTH NUMBER OF READY_FOLDER

Waits until `OF` processes are ready, trains, and prints its steady rate in tokens a second.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from cluster_jobs import ROOT, VOCAB_SIZE, steady_rate

from autoscale.model import build_model
from autoscale.model_shape import resolve_model

_ROWS, _LENGTH = 4, 256
_WARM_UP = 3


def main() -> None:
    engine, *numbers, folder = sys.argv[1:]
    steps, layers, width, number, of = map(int, numbers)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = build_model(_fields(layers, width), seed=0, activation_checkpointing=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    train = _torch(model, optimizer) if engine == "torch" else _deepspeed(model, optimizer)
    generator = torch.Generator().manual_seed(number)
    data = torch.randint(VOCAB_SIZE, (64, _ROWS, _LENGTH + 1), generator=generator)
    for step in range(_WARM_UP):
        train(data[step])
    _meet(Path(folder), number, of)
    seconds = []
    for step in range(steps):
        start = time.perf_counter()
        train(data[step % len(data)])
        seconds.append(time.perf_counter() - start)
    print(json.dumps(steady_rate(seconds, [_ROWS * _LENGTH] * steps)))


def _fields(layers: int, width: int) -> dict[str, Any]:
    return resolve_model(
        "gpt2-tiny",
        {"n_layer": layers, "n_embd": width, "n_head": 8},
        vocab_size=VOCAB_SIZE,
        end_of_text_id=VOCAB_SIZE - 1,
        sequence_length=_LENGTH,
    )


def _loss(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=tokens[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def _torch(model: Any, optimizer: torch.optim.Optimizer) -> Any:
    def train(tokens: torch.Tensor) -> None:
        _loss(model, tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return train


def _deepspeed(model: Any, optimizer: torch.optim.Optimizer) -> Any:
    import deepspeed
    import torch.distributed as dist
    from deepspeed.ops import __compatible_ops__

    __compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled at every start
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    settings = json.loads((ROOT / "ds_configs" / "zero1.json").read_text())
    settings |= {
        "train_batch_size": _ROWS, "train_micro_batch_size_per_gpu": _ROWS,
        "gradient_clipping": 1.0, "steps_per_print": 2**31,
    }  # fmt: skip
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)

    def train(tokens: torch.Tensor) -> None:
        engine.backward(_loss(engine, tokens))
        engine.step()

    return train


def _meet(folder: Path, number: int, of: int) -> None:
    """Go on when all processes have come here, so that they train side by side."""
    (folder / f"ready-{number}").touch()
    while len(list(folder.glob("ready-*"))) < of:
        time.sleep(0.01)


if __name__ == "__main__":
    main()
