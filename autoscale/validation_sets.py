"""What runs train on, what they are measured on, and which of it a mixture is chosen for.

A training domain brings its own validation set. Further sets, e.g. of text unlike any domain, have
losses like the others; they count towards the objective where `fit.objective_weights` says so.
"""

from collections.abc import Mapping
from difflib import get_close_matches

from .config import ExperimentConfig
from .manifest import Manifest
from .objective import Objective


def training_domains(config: ExperimentConfig, manifest: Manifest) -> tuple[str, ...]:
    """The domains of `data.domains`; by default all that have training shards.

    Raises:
        ValueError: one is unknown or cannot be trained on, or there are fewer than two.
    """
    wanted = config.data.domains or manifest.training_domains
    for name in wanted:
        if not manifest.domain(name).train:
            raise ValueError(
                f"data.domains names {name!r}, which has no training shards in "
                f"{config.manifest_path}: it is a validation set; name it in evaluation.sets, or "
                "prepare text to train on"
            )
    if len(wanted) < 2:
        raise ValueError(
            f"a mixture needs at least two domains; {config.manifest_path} gives "
            f"{', '.join(wanted)}"
        )
    return tuple(wanted)


def validation_sets(
    config: ExperimentConfig, manifest: Manifest, domains: tuple[str, ...]
) -> tuple[str, ...]:
    """Everything that runs on `domains` are measured on, the domains' own sets first.

    Raises:
        ValueError: `evaluation.sets` names what the manifest does not have.
    """
    further = config.evaluation.sets
    if further is None:
        further = tuple(n for n in manifest.domain_names if n not in manifest.training_domains)
    for name in further:
        manifest.domain(name)
    others = tuple(name for name in further if name not in domains)
    if others and config.fit.law == "bimix":
        raise ValueError(
            "fit.law 'bimix' describes a validation set by the weight of the domain of the same "
            f"name, and {', '.join(others)} cannot be trained on here; set evaluation.sets = [] or "
            "take another law"
        )
    return domains + others


def make_objective(
    config: ExperimentConfig,
    manifest: Manifest,
    *,
    domains: tuple[str, ...],
    sets: tuple[str, ...],
) -> Objective:
    """The objective of losses in nats a token, over all sets.

    Raises:
        ValueError: a weight is of no set, or the weights or the sets' bytes do not make one.
    """
    fit = config.fit
    weights = _weights(fit.objective_weights or dict.fromkeys(domains, 1.0), sets)
    if fit.metric == "nats":
        return Objective.create(fit.objective, sets, weights)
    return Objective.create(
        "mean_bits_per_byte",
        sets,
        weights,
        bytes_per_token={name: manifest.bytes_per_token(name) for name in sets},
    )


def _weights(given: Mapping[str, float], sets: tuple[str, ...]) -> dict[str, float]:
    """Weights of all sets, 0 for those left out."""
    for name in given:
        if name not in sets:
            near = get_close_matches(name, sets, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sets)}"
            raise ValueError(
                f"fit.objective_weights names {name!r}, which runs are not measured on; {hint}"
            )
    return {name: given.get(name, 0.0) for name in sets}
