"""The training step that a run asks for: plain, or that of a method that works while it trains."""

from typing import Any

from .data import RunStream
from .execution import Execution
from .masking import Masking
from .online_ado import LiveStep
from .online_doremi import ProxyStep
from .runs import RunSpec
from .training_step import TrainingStep


def training_step(
    engine: Any,
    spec: RunSpec,
    execution: Execution,
    stream: RunStream,
    *,
    micro_batch_size: int,
    masking: Masking | None,
) -> TrainingStep:
    """The step of a run.

    Raises:
        ValueError: the method is unknown, does not go with DiLoCo or stages, or cannot work.
    """
    method = spec.online.get("method")
    if method is None:
        return TrainingStep(engine, spec, micro_batch_size=micro_batch_size, masking=masking)
    for what, given in (("train.diloco", spec.diloco), ("train.stages", spec.stages)):
        if given:
            raise ValueError(f"{what} does not go with online method {method!r}; leave one out")
    if method == "doremi":
        return ProxyStep(
            engine,
            spec,
            micro_batch_size=micro_batch_size,
            masking=masking,
            reference=execution.reference_model,
        )
    if method == "ado":
        return LiveStep(
            engine, spec, micro_batch_size=micro_batch_size, masking=masking, stream=stream
        )
    raise ValueError(f"online method {method!r} is unknown; known are 'doremi' and 'ado'")
