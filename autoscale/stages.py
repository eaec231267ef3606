"""The steps between the training runs: plan, fit, project. Files in, files out, no torch.

plan     experiment            -> plan.json            which runs, what they cost
fit      probe results         -> fit.json             laws and optimal mixture per budget
project  fit.json              -> mixture-<B>.json     weights for the target budget
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .config import ExperimentConfig
from .constraints import project_onto_bounds
from .experiment_foresight import foresee_decision
from .experiment_memory import planned_memory
from .joint_fit import fit_joint, project_joint
from .mixture import Mixture
from .model_shape import model_size
from .planning import Experiment, PlannedProbe
from .probe_length import probe_levels
from .published_fit import fit_published, project_published
from .records import read_json, write_json
from .run_folder import RunFolders, RunView
from .runs import RunSpec
from .spending import PlannedRun, left_to_do, make_ledger
from .token_count import format_token_count

PROJECTIONS = ("joint", "hold", "full", "damped")


def artifact(config: ExperimentConfig, name: str, token_budget: int | None = None) -> Path:
    """Where an artifact of the experiment lies: `plan`, `fit`, `mixture` or `report`.

    Args:
        token_budget: of a mixture; by default `train.budget`.
    """
    if name == "mixture":
        name = f"mixture-{format_token_count(token_budget or config.train.budget.tokens)}"
    return Path(config.output_dir) / f"{name}.json"


def plan(config: ExperimentConfig) -> Path:
    """Write which runs the experiment needs, with their tokens, FLOPs and estimated cost.

    The mixture of the target run may not be known yet; its tokens and FLOPs are.

    Raises:
        ValueError: what is left does not fit the experiment's limits.
    """
    experiment = Experiment(config)
    planned, views = planned_runs(experiment), RunFolders(experiment.store.root).look()
    ledger = make_ledger(config, planned, views)
    ledger.check()
    size = model_size(experiment.model, config.data.sequence_length)
    totals = {
        stage: _total([run for run in planned if run.stage == stage], views, ledger.rate)
        for stage in ("probe", "train")
    }
    content = {
        "name": config.name,
        "domains": list(experiment.domains),
        "sets": list(experiment.sets),
        "available_tokens": dict(zip(experiment.domains, experiment.available_tokens, strict=True)),
        "model": {"parameters": size.parameters, "flops_per_token": size.flops_per_token},
        "runs": [_planned(run, run.view(views), experiment) for run in planned],
        "totals": totals,
        "cost_basis": ledger.rate_basis,
        "limits": ledger.to_dict(),
        "packing": _packing(experiment),
        "matched_probes": _matched_probes(experiment),
        "train_stages": _train_stages(planned[-1].spec),
        "memory": planned_memory(experiment),
        "foresight": foresee_decision(experiment, artifact(config, "fit")),
    }
    return write_json(artifact(config, "plan"), "plan", content)


def _packing(experiment: Experiment) -> dict[str, Any] | None:
    """How documents are packed, and the positions of each domain that predict nothing."""
    data = experiment.config.data
    if data.packing == "contiguous":
        return None
    supply = experiment.supply(experiment.config.train.budget.tokens)
    unused_K = 1 - supply.tokens / (supply.windows * data.sequence_length)
    unused = dict(zip(experiment.domains, unused_K.tolist(), strict=True))
    return {"mode": data.packing, "unused": unused}


def _matched_probes(experiment: Experiment) -> list[dict[str, Any]] | None:
    """The share of each domain that probes of a budget draw from, and the tokens in it."""
    config = experiment.config
    if not config.probe.match_repetition:
        return None
    rows = []
    for token_budget in dict.fromkeys(budget.tokens for budget in config.probe.budgets):
        tokens_K = experiment.supply(token_budget).tokens.tolist()
        rows.append(
            {
                "token_budget": token_budget,
                "share": experiment.share(token_budget),
                "tokens": dict(zip(experiment.domains, tokens_K, strict=True)),
            }
        )
    return rows


def _train_stages(spec: RunSpec) -> list[dict[str, Any]]:
    """The later parts of a target run, which are those of every one, as their weights are met."""
    rows, position = [], 0
    for quotas in spec.quotas:
        total = sum(quotas)
        weights = [quota / total for quota in quotas]
        rows.append(
            {
                "step": position // spec.sequences_per_batch,
                "tokens": total * spec.sequence_length,
                "weights": dict(zip(spec.domains, weights, strict=True)),
            }
        )
        position += total
    return rows[1:]


def _total(
    runs: Sequence[PlannedRun], views: Mapping[str, RunView], rate: float | None
) -> dict[str, Any]:
    """What the runs of a stage cost; `rate` is the FLOP/s of one device."""
    left = [run for run, _ in left_to_do(runs, views)]
    flops = sum(run.flops for run in left)
    return {
        "runs": len(runs),
        "tokens": sum(run.spec.total_tokens for run in runs),
        "flops": sum(run.flops for run in runs),
        "left_runs": len(left),
        "left_tokens": sum(run.spec.total_tokens for run in left),
        "device_hours": None if rate is None else flops / rate / 3600,
    }


def _planned(run: PlannedRun, view: RunView, experiment: Experiment) -> dict[str, Any]:
    spec = run.spec
    epochs = [
        count / available
        for count, available in zip(
            spec.sequences, experiment.supply_of(spec).windows.tolist(), strict=True
        )
    ]
    most = int(np.argmax(epochs))
    repeated = {"domain": spec.domains[most], "epochs": epochs[most]}
    return {
        "stage": run.stage,
        "label": spec.label,
        "run_id": spec.run_id if run.is_known else None,
        "seed": spec.seed,
        "tokens": spec.total_tokens,
        "tokens_by_domain": spec.tokens,
        "parameters": model_size(spec.model, spec.sequence_length).parameters,
        "flops": run.flops,
        "steps": spec.num_steps,
        "max_epochs": repeated if run.is_known else None,
        "status": view.state,
    }


def planned_runs(experiment: Experiment) -> list[PlannedRun]:
    """All runs that the experiment needs, probe runs first.

    Raises:
        ValueError: a target run needs more of a domain than the experiment allows.
    """
    try:
        targets = known_targets(experiment)
    except ValueError:  # the mixture is no use any more; `project` will write it again
        targets = None
    return planned_probes(experiment) + (targets or stand_in_targets(experiment))


def planned_probes(experiment: Experiment) -> list[PlannedRun]:
    """The probe runs."""
    return [PlannedRun(stage="probe", spec=planned.spec) for planned in experiment.probes()]


def known_targets(experiment: Experiment) -> list[PlannedRun] | None:
    """The target runs; None before the mixture is written.

    Raises:
        ValueError: the mixture that is written does not fit the experiment.
    """
    if not artifact(experiment.config, "mixture").is_file():
        return None
    targets = experiment.targets(target_mixtures(experiment))
    return [PlannedRun(stage="train", spec=target.spec) for target in targets]


def stand_in_targets(experiment: Experiment) -> list[PlannedRun]:
    """The target runs before the fit: a feasible mixture stands in for those that it will give."""
    lower, upper = experiment.bounds(experiment.config.train.budget.tokens)
    weights = project_onto_bounds(
        experiment.reference.as_array(), domains=experiment.domains, lower=lower, upper=upper
    )
    stand_in = dict(zip(experiment.domains, weights.tolist(), strict=True))
    mixtures = experiment.baselines(dict.fromkeys(PROJECTIONS, stand_in))
    targets = experiment.targets({"autoscale": experiment.mixture(stand_in), **mixtures})
    from_fit = {"autoscale", *PROJECTIONS}
    return [
        PlannedRun(stage="train", spec=target.spec, is_known=target.mixture not in from_fit)
        for target in targets
    ]


def check_limits(experiment: Experiment) -> None:
    """Raise ValueError when what is left of the experiment does not fit its limits."""
    views = RunFolders(experiment.store.root).look()
    make_ledger(experiment.config, planned_runs(experiment), views).check()


def fit(config: ExperimentConfig) -> Path:
    """Fit the law to the probe results and solve for the best mixture at every probe budget.

    Raises:
        ValueError: probe runs are missing, more failed than `probe.max_failed` allows, or the runs
            cannot carry the law.
    """
    experiment = Experiment(config)
    planned = experiment.probes()
    _require_results(planned, experiment)
    finished = [
        (probe, experiment.store.result(probe.spec))
        for probe in planned
        if experiment.store.status(probe.spec) == "finished"
    ]
    fit_law = fit_published if config.fit.law == "autoscale" else fit_joint
    content = fit_law(experiment, finished) | {"levels": probe_levels(experiment, finished)}
    return write_json(artifact(config, "fit"), "fit", content)


def _require_results(planned: Sequence[PlannedProbe], experiment: Experiment) -> None:
    unfinished, failures = [], []
    for probe in planned:
        status = experiment.store.status(probe.spec)
        if status == "failed":
            failures.append(probe)
        elif status != "finished":
            unfinished.append(probe.spec.label)
    if unfinished:
        shown = ", ".join(unfinished[:5]) + (" ..." if len(unfinished) > 5 else "")
        raise ValueError(
            f"{len(unfinished)} of {len(planned)} probe runs have no result yet ({shown}); run "
            "`autoscale probe` first"
        )
    for budget in {probe.token_budget for probe in failures}:
        failed = [probe for probe in failures if probe.token_budget == budget]
        limit = experiment.config.probe.max_failed
        if len(failed) > limit:
            reasons = "; ".join(
                f"{probe.spec.label}: {experiment.store.failure(probe.spec).message}"
                for probe in failed
            )
            raise ValueError(
                f"{len(failed)} probe runs at {format_token_count(budget)} failed, and "
                f"probe.max_failed is {limit}: {reasons}"
            )


def project(config: ExperimentConfig, token_budget: int | None = None) -> Path:
    """Carry the optima at the probe budgets to the target budget; write the mixture.

    Args:
        token_budget: by default `train.budget`.
    """
    experiment = Experiment(config)
    target = config.train.budget.tokens if token_budget is None else token_budget
    if config.probe.match_repetition and target != config.train.budget.tokens:
        raise ValueError(
            f"the probe runs repeat their data as a run of {config.train.budget.tokens} tokens "
            f"would (probe.match_repetition), and a run of {target} repeats it otherwise; set "
            "train.budget to the tokens wanted and run `autoscale probe` again"
        )
    fitted = read_json(artifact(config, "fit"), "fit")
    if fitted["domains"] != list(experiment.domains):
        raise ValueError(
            f"{artifact(config, 'fit')} was fitted on {', '.join(fitted['domains'])} but the "
            f"experiment has {', '.join(experiment.domains)}; run `autoscale fit` again"
        )
    measured = fitted.get("sets", fitted["domains"])  # fits were of the domains' own sets alone
    if measured != list(experiment.sets):
        raise ValueError(
            f"{artifact(config, 'fit')} was fitted to losses on {', '.join(measured)} but runs are "
            f"measured on {', '.join(experiment.sets)} now; run `autoscale probe` and `fit` again"
        )
    for key, now in (("law", config.fit.law), ("metric", config.fit.metric)):
        then = fitted.get(key, "nats")  # the published law's fit has no metric
        if then != now:
            raise ValueError(
                f"{artifact(config, 'fit')} was fitted with {key} {then!r} but fit.{key} is now "
                f"{now!r}; run `autoscale fit` again"
            )
    project_law = project_published if config.fit.law == "autoscale" else project_joint
    content = project_law(experiment, fitted, target)
    return write_json(artifact(config, "mixture", target), "mixture", content)


def target_mixtures(experiment: Experiment) -> dict[str, Mixture]:
    """The projected mixture, called `autoscale`, and the baselines, from the artifacts."""
    path = artifact(experiment.config, "mixture")
    content = read_json(path, "mixture")
    chosen = Mixture.from_mapping(content["weights"]).reordered(experiment.domains)
    return {"autoscale": chosen, **experiment.baselines(content["alternatives"])}
