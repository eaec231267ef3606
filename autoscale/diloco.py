"""DiLoCo: groups of ranks that train apart and meet every H steps (arXiv 2311.08105, 2503.09799).

For slow links between the groups. All M groups start from the same global parameters `theta`. Group
m trains with an AdamW of its own on its share of every global batch, and clips its own gradients;
after H steps it stands at `theta_m`. Then the groups meet:

    delta = mean over m of (theta - theta_m)        the only parameters sent between the groups
    b     = mu b + delta                            outer momentum, from zero
    theta = theta - eta (delta + mu b)              Nesterov's step

and all go on from `theta`, each with the AdamW state that it has. The last step of a run is always
followed by a meeting, however many steps have passed since the one before.

Evaluations measure the global parameters, as the papers do: those of the last meeting, put in place
for the evaluation and taken out again, so that evaluating changes nothing. One between two meetings
therefore shows the run as it was when the groups last met.

Each rank holds the share of `theta` and `b` that it holds of the fp32 parameters under its ZeRO
stage, and meets the ranks of the other groups that hold the same share. Nothing here depends on the
number of ranks in a group: runs of as many groups differ by rounding only.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from .execution import require_equal_groups
from .traffic import VOTE_BYTES, StepTraffic, all_reduce


class RankGroups:
    """Equal groups of the ranks of the default process group; all of them make one.

    DeepSpeed takes it for its `mpu`, and then averages gradients and cuts ZeRO's shares inside this
    rank's group. No tensor is cut over ranks: what DeepSpeed calls the model-parallel group is this
    rank alone.

    Attributes:
        num_groups, index: of the groups, and of this rank's among them.
        inside: this rank's group. Neighbouring ranks are in one, to keep it on one host.
        between: this rank and those in its place in the other groups.

    Raises:
        ValueError: the ranks cannot form the groups.
    """

    def __init__(self, num_groups: int) -> None:
        rank, world_size = dist.get_rank(), dist.get_world_size()
        require_equal_groups(num_groups, world_size)
        size = world_size // num_groups
        self.num_groups = num_groups
        self.index = rank // size
        places = torch.arange(world_size).view(num_groups, size)
        self.inside = _own_of(places)
        self.between = _own_of(places.T)
        self._alone = _own_of(places.view(-1, 1))

    @property
    def size(self) -> int:
        """Ranks of a group."""
        return dist.get_world_size(self.inside)

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        return self.inside

    def get_data_parallel_rank(self) -> int:
        return dist.get_rank(self.inside)

    def get_data_parallel_world_size(self) -> int:
        return self.size

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        return self._alone

    def get_model_parallel_rank(self) -> int:
        return 0

    def get_model_parallel_world_size(self) -> int:
        return 1


def _own_of(rows: torch.Tensor) -> dist.ProcessGroup:
    """Make a communicator of every row of ranks; returns the one with this rank."""
    own, _ = dist.new_subgroups_by_enumeration(rows.tolist())
    assert own is not None
    return own


class OuterOptimizer:
    """The global parameters of a run, and the steps that they take when its groups meet.

    Args:
        engine: of this rank, made with `groups` as its `mpu`.
        groups: of the ranks.
        settings: fields of `config_method.DilocoConfig`.
        num_steps: of the run.

    Attributes:
        meetings: of the groups so far.
    """

    def __init__(
        self, engine: Any, groups: RankGroups, settings: Mapping[str, Any], *, num_steps: int
    ) -> None:
        self._engine, self._groups, self._num_steps = engine, groups, num_steps
        self._inner_steps = int(settings["inner_steps"])
        self._global = [own.detach().clone() for own in local_parameters(engine)]
        momentum = float(settings["outer_momentum"])
        self._nesterov = torch.optim.SGD(
            self._global,
            lr=float(settings["outer_lr"]),
            momentum=momentum,
            nesterov=momentum > 0,  # without momentum both are plain descent, and torch refuses
        )
        self._step = _step_traffic(engine)
        self._exchanged = 4 * sum(held.numel() for held in self._global)
        self.meetings = 0

    def after_step(self, done: int) -> None:
        """Let the groups meet if they have to after `done` completed steps; all ranks call."""
        if done % self._inner_steps == 0 or done == self._num_steps:
            self._meet()

    @torch.no_grad()
    def _meet(self) -> None:
        for held, own in zip(self._global, local_parameters(self._engine), strict=True):
            held.grad = self._sum_between(held - own).div_(self._groups.num_groups)
        self._nesterov.step()
        self._nesterov.zero_grad()
        self._put_in_place(self._global)
        self.meetings += 1

    def _sum_between(self, difference: torch.Tensor) -> torch.Tensor:
        """The sum over the groups; an offloaded share travels by way of the device."""
        travelling = difference.to(self._engine.device)
        dist.all_reduce(travelling, group=self._groups.between)
        return travelling.to(difference.device)

    @contextmanager
    def global_parameters(self) -> Iterator[None]:
        """The engine computes with the global parameters inside, with its own ones afterwards."""
        own = [each.detach().clone() for each in local_parameters(self._engine)]
        self._put_in_place(self._global)
        yield
        self._put_in_place(own)

    @torch.no_grad()
    def _put_in_place(self, parameters: list[torch.Tensor]) -> None:
        for own, given in zip(local_parameters(self._engine), parameters, strict=True):
            own.copy_(given)
        _show_to_model(self._engine)

    def bytes_sent(self, done: int) -> dict[str, float]:
        """Bytes that this rank has sent for `done` steps, and would have without groups."""
        groups = self._groups
        votes = done * all_reduce(VOTE_BYTES, dist.get_world_size())
        between = self.meetings * all_reduce(self._exchanged, groups.num_groups) + votes
        return {
            "bytes_sent/between_groups": between,
            "bytes_sent/in_all": between + done * self._step.sent(groups.size),
            "bytes_sent/data_parallel": done * self._step.sent(dist.get_world_size()) + votes,
        }

    def state(self) -> dict[str, Any]:
        """What this rank has to keep beside the engine's checkpoint."""
        return {
            "parameters": [held.detach() for held in self._global],
            "optimizer": self._nesterov.state_dict(),
            "meetings": self.meetings,
        }

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, after the engine's own checkpoint was loaded."""
        for held, saved in zip(self._global, state["parameters"], strict=True):
            held.copy_(saved)
        self._nesterov.load_state_dict(state["optimizer"])
        self.meetings = state["meetings"]


def local_parameters(engine: Any) -> list[torch.Tensor]:
    """This rank's share of the fp32 parameters that AdamW changes, flat under ZeRO 1 to 3."""
    for name in (
        "fp32_partitioned_groups_flat",  # stage 3
        "single_partition_of_fp32_groups",  # stages 1 and 2
        "fp32_groups_flat_partition",  # stage 1 in bf16
    ):
        if hasattr(engine.optimizer, name):
            return list(getattr(engine.optimizer, name))
    return [parameter for parameter in engine.module.parameters() if parameter.requires_grad]


def _step_traffic(engine: Any) -> StepTraffic:
    parameters = [each for each in engine.module.parameters() if each.requires_grad]
    return StepTraffic(
        parameters=sum(getattr(each, "ds_numel", each.numel()) for each in parameters),
        parameter_bytes=parameters[0].dtype.itemsize,
        gradient_bytes=engine.communication_data_type.itemsize,
        zero_stage=int(engine.zero_optimization_stage()),
        micro_batches=engine.gradient_accumulation_steps(),
    )


def _show_to_model(engine: Any) -> None:
    """Give the model the fp32 parameters as they are now, as after an optimiser step."""
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage in (1, 2):
        optimizer.update_lp_params()
    elif stage == 3:
        optimizer._partition_all_parameters()
        for index in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(index)
        small = optimizer.persistent_parameters  # kept whole on every rank
        if small:
            small[0].all_gather(small)
