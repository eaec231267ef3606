"""The proxy run of DoReMi: steps on losses that group DRO weights against a reference model.

Before the gradient of a batch is taken, its clipped excess losses are summed by domain over all
micro-batches and ranks, and give the weights of this very step (`methods.group_dro`). The loss is
then the weighted sum of the domains' mean losses,

    sum_k alpha[k] / (labels of domain k in the batch) sum over them of l_proxy,

the weights taken relative to those of the domains that the batch has. With several micro-batches
this costs a second forward pass of the proxy.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from numpy.typing import NDArray

from .masking import Masking
from .methods.group_dro import GroupDRO
from .model import build_model
from .prefetch import DeviceBatch
from .runs import RunSpec
from .training_step import MicroBatch, TrainingStep, sum_by_domain

# B rows of a micro-batch, K domains

_FORWARD = 1 / 3  # of the FLOPs of a forward and a backward pass


class ProxyStep(TrainingStep):
    """Steps of a proxy run; every rank holds the reference model.

    Args:
        reference: folder of the reference model; None where there is none.

    Raises:
        ValueError: there is no reference model, or the run draws nothing of a domain.
    """

    def __init__(
        self,
        engine: Any,
        spec: RunSpec,
        *,
        micro_batch_size: int,
        masking: Masking | None,
        reference: str | None,
    ) -> None:
        super().__init__(engine, spec, micro_batch_size=micro_batch_size, masking=masking)
        if reference is None:
            raise ValueError(
                f"the reference run {spec.online['reference']} has no exported model; train it "
                "before its proxy, with export, or delete its folder and train it again"
            )
        for name, sequences in zip(spec.domains, spec.sequences, strict=True):
            if not sequences:
                raise ValueError(
                    f"a DoReMi proxy draws from every domain, and has no tokens of {name!r}; draw "
                    "from uniform weights, or leave the domain out"
                )
        self._dro = GroupDRO(
            len(spec.domains),
            step_size=spec.online["step_size"],
            smoothing=spec.online["smoothing"],
        )
        model = build_model(
            spec.model, seed=spec.seed, activation_checkpointing=False, start_from=reference
        )
        precision = spec.optimisation["precision"]
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32  # as the engine's
        self._reference = model.to(engine.device, dtype).eval().requires_grad_(False)
        self._accumulates = engine.gradient_accumulation_steps() > 1
        self.work = 1 + (1 + self._accumulates) * _FORWARD

    def __call__(self, batch: DeviceBatch) -> torch.Tensor:
        """One optimiser step; a loss whose mean over the ranks is the weighted one."""
        parts, device = self.parts(batch), batch.tokens.device
        sums_2K = torch.zeros(2, len(self.spec.domains), dtype=torch.float64, device=device)
        ahead = None
        if self._accumulates:
            self.engine.eval()
            for part in parts:
                with torch.no_grad():
                    self._add_excess(sums_2K, part, self.label_losses(self.engine, part))
            self.engine.train()
        else:
            ahead = self.label_losses(self.engine, parts[0])
            self._add_excess(sums_2K, parts[0], ahead)
        dist.all_reduce(sums_2K)
        excess_K, labels_K = sums_2K.cpu().numpy()
        alpha_K = self._dro.update(excess_K, labels_K)
        seen_K = labels_K > 0
        alpha_K = alpha_K / alpha_K[seen_K].sum()
        weights_K = torch.from_numpy(alpha_K / labels_K.clip(min=1)).float()
        scale = len(parts) * dist.get_world_size()  # of which DeepSpeed takes the mean
        total = torch.zeros((), device=device)
        for part in parts:
            losses_B = self.row_losses(part) if ahead is None else ahead.sum(dim=1)
            weights_B = weights_K[part.domain].to(device)
            total += self.descend((losses_B * weights_B).sum() * scale)
        return total / len(parts)

    def _add_excess(self, sums_2K: torch.Tensor, part: MicroBatch, losses: torch.Tensor) -> None:
        with torch.no_grad():
            reference = self.label_losses(self._reference, part)
            excess = (losses - reference).clamp(min=0)
        sum_by_domain(sums_2K, part.domain, excess.sum(dim=1), self.row_labels(part))

    def scalars(self) -> dict[str, float]:
        """The weights of the last step."""
        alpha_K = self._dro.weights.tolist()
        return {f"doremi/{name}": a for name, a in zip(self.spec.domains, alpha_K, strict=True)}

    def state(self) -> dict[str, Any]:
        return self._dro.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        self._dro.restore(state)

    def outcome(self, labels_K: NDArray[Any]) -> dict[str, Any]:
        """The mean weights of the steps."""
        average_K = self._dro.average.tolist()
        return {"weights": dict(zip(self.spec.domains, average_K, strict=True))}
