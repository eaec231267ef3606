"""Any fitted law, from its JSON."""

from collections.abc import Mapping
from typing import Any

from .average import AveragedLaw
from .fit import JointLaw
from .fitted_law import FittedLaw
from .trees import TreeLaw

Law = JointLaw | TreeLaw


def law_from_dict(record: Mapping[str, Any]) -> Law:
    """The law of a record that `to_dict` made."""
    if record["law"] == TreeLaw.law:
        return TreeLaw.from_dict(record)
    return (AveragedLaw if "members" in record else FittedLaw).from_dict(record)
