"""Any fitted law, from its JSON."""

from collections.abc import Mapping
from typing import Any

from .average import AveragedLaw
from .fit import JointLaw
from .fitted_law import FittedLaw
from .rescaled import Correction, RescaledLaw
from .trees import TreeLaw

ParametricLaw = JointLaw | RescaledLaw
"""With draws, surfaces with gradients, and readable parameters."""
Law = ParametricLaw | TreeLaw


def law_from_dict(record: Mapping[str, Any]) -> Law:
    """The law of a record that `to_dict` made."""
    if record["law"] == TreeLaw.law:
        return TreeLaw.from_dict(record)
    if "base" not in record:
        return _joint_law(record)
    return RescaledLaw(
        base=_joint_law(record["base"]),
        size=record["size"],
        correction=Correction.from_dict(record["correction"]),
        draw_corrections=Correction.from_dict(record["draw_corrections"]),
    )


def _joint_law(record: Mapping[str, Any]) -> JointLaw:
    return (AveragedLaw if "members" in record else FittedLaw).from_dict(record)
