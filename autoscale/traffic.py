"""Bytes that a rank sends to train, counted from the sizes of the collectives.

What a ring sends: of b bytes over n ranks an all-reduce sends 2 (n - 1) / n b from each rank, a
gather or a scattered reduction half of that. Counted are gradients, parameters, and what groups of
ranks exchange; not the few numbers of a logged loss or an evaluation.
"""

from dataclasses import dataclass

VOTE_BYTES = 8
"""What the ranks agree on after each step: two 32-bit answers."""


def all_reduce(num_bytes: float, ranks: int) -> float:
    """Bytes that each rank sends to sum `num_bytes` over `ranks`."""
    return 2 * (ranks - 1) / ranks * num_bytes


def gather(num_bytes: float, ranks: int) -> float:
    """Bytes that each rank sends to gather `num_bytes` in all on `ranks`."""
    return (ranks - 1) / ranks * num_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTraffic:
    """What an optimiser step of DeepSpeed exchanges inside one group of data parallel ranks.

    Attributes:
        parameters: of the model.
        parameter_bytes, gradient_bytes: of one on its way.
        zero_stage: 0 to 3.
        micro_batches: that a rank computes a step.
    """

    parameters: int
    parameter_bytes: int
    gradient_bytes: int
    zero_stage: int
    micro_batches: int

    def sent(self, ranks: int) -> float:
        """Bytes that each of `ranks` sends in a step.

        Stages 0 to 2 sum all gradients, stage 2 after each micro-batch; stages 1 and 2 then gather
        the parameters. Stage 3 gathers them in every forward and backward pass and sums gradients
        to where they are needed; the small ones, of which it keeps copies, are counted alike.
        """
        gradients = self.parameters * self.gradient_bytes
        parameters = self.parameters * self.parameter_bytes
        if self.zero_stage == 3:
            each = 2 * gather(parameters, ranks) + gather(gradients, ranks)
            return self.micro_batches * each
        sums = self.micro_batches if self.zero_stage == 2 else 1
        gathered = gather(parameters, ranks) if self.zero_stage else 0.0
        return sums * all_reduce(gradients, ranks) + gathered
