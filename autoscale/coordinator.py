"""Rank 0 decides, every rank trains: the stages that need the whole job.

`run` is the method end to end: prepare, probe, fit, project, train, report. Between the stages
rank 0 alone solves and writes; what the others need goes out as JSON, and an error on rank 0
stops every rank with the same message.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from . import stages
from .campaign import Campaign, Observer, Task, unobserved
from .claims import read_claim
from .config import ExperimentConfig
from .distributed import Job
from .execution import micro_batch_size
from .planning import Experiment
from .provenance import commit
from .records import write_json
from .runs import RunSpec

PrepareStage = Callable[[ExperimentConfig], Path]


def open_experiment(job: Job, config: ExperimentConfig, to_do: Sequence[str]) -> Experiment:
    """Check the experiment on rank 0 first, then on all ranks, and that all see the same.

    Args:
        to_do: what the job will do, `probe` or `train` or both; their ranks are checked now.
    """

    def check() -> None:
        experiment = Experiment(config)
        for stage in to_do:
            _check_ranks(stage, experiment, job.world_size)

    job.from_root(check)
    experiments: list[Experiment] = []

    def fingerprint() -> str:
        experiments.append(Experiment(config))
        return experiments[0].data_fingerprint

    prints = job.on_all(fingerprint)
    job.require_agreement("data fingerprint", prints[job.rank])
    # Where the texts lay matters to `prepare` alone, which runs on rank 0.
    content = config.model_dump_json(exclude={"prepare"})
    job.require_agreement("experiment hash", hashlib.sha256(content.encode()).hexdigest()[:12])
    job.require_agreement("code version", str(commit()))
    return experiments[0]


def _check_ranks(stage: str, experiment: Experiment, world_size: int) -> None:
    """The ranks of a run must exist and divide its batch."""
    ranks = ranks_per_run(experiment.config, stage, world_size)
    if ranks > world_size:
        raise ValueError(
            f"{stage}.ranks_per_run is {ranks} but the job has {world_size} ranks; start more "
            "ranks or lower it"
        )
    for where, sequences in experiment.batches():
        if where.startswith(stage):
            micro_batch_size(sequences, ranks, experiment.config.trainer.micro_batch_size)


def ranks_per_run(config: ExperimentConfig, stage: str, world_size: int) -> int:
    """Ranks that train one run of a stage."""
    given = config.probe.ranks_per_run if stage == "probe" else config.train.ranks_per_run
    return world_size if given == "all" else given


def probe(
    job: Job,
    config: ExperimentConfig,
    *,
    observer: Observer = unobserved,
    only: Sequence[str] = (),
    resume: bool = True,
    wait: bool = False,
) -> None:
    """Do the probe runs that are left, side by side over the ranks.

    Any number of jobs may do so at once on one output folder: each run is trained by one of them.

    Args:
        only: run ids or labels; by default all.
        resume: continue interrupted runs from their checkpoints, else from their first step.
        wait: return only when the runs that other jobs train are done as well.
    """
    experiment = open_experiment(job, config, ["probe"])
    planned = [planned.spec for planned in experiment.probes()]
    chosen = job.from_root(lambda: _select(planned, only))
    tasks = [
        Task(spec=spec, execution=experiment.execution(spec, export=False, is_probe=True))
        for spec in (planned[index] for index in chosen)
    ]
    _run_tasks(job, experiment, "probe", tasks, observer, resume=resume, wait=wait)


def train(
    job: Job,
    config: ExperimentConfig,
    *,
    observer: Observer = unobserved,
    resume: bool = True,
) -> None:
    """Train the target on the projected mixture and on every baseline, under every seed."""
    experiment = open_experiment(job, config, ["train"])

    def solved() -> dict[str, dict[str, float]]:
        mixtures = stages.target_mixtures(experiment)
        return {name: mixture.to_dict() for name, mixture in mixtures.items()}

    # Rank 0 read the weights; the others take them as sent, so that all train the same.
    mixtures = {
        name: experiment.mixture(weights) for name, weights in job.from_root(solved).items()
    }
    first_seed = config.train_seeds[0]
    tasks = [
        Task(
            spec=target.spec,
            execution=experiment.execution(
                target.spec, export=config.train.export and target.seed == first_seed
            ),
        )
        for target in experiment.targets(mixtures)
    ]
    _run_tasks(job, experiment, "train", tasks, observer, resume=resume, wait=True)
    job.from_root(lambda: _require_trained([task.spec for task in tasks], experiment))


def run(
    job: Job,
    config: ExperimentConfig,
    *,
    observer: Observer = unobserved,
    prepare: PrepareStage,
    report: Callable[[ExperimentConfig], Path],
    resume: bool = True,
) -> Path:
    """All stages in one job; returns the path of the report.

    Args:
        prepare: makes the shards; called on rank 0 when the experiment has a `prepare` section.
        report: writes the report; called on rank 0 at the end.
    """
    if config.prepare is not None:
        job.from_root(lambda: str(prepare(config)))
    open_experiment(job, config, ["probe", "train"])
    job.from_root(lambda: str(stages.plan(config)))
    probe(job, config, observer=observer, resume=resume, wait=True)
    job.from_root(lambda: [str(stages.fit(config)), str(stages.project(config))])
    train(job, config, observer=observer, resume=resume)
    return Path(job.from_root(lambda: str(report(config))))


def _run_tasks(
    job: Job,
    experiment: Experiment,
    stage: str,
    tasks: Sequence[Task],
    observer: Observer,
    *,
    resume: bool,
    wait: bool,
) -> None:
    job.from_root(lambda: _record(experiment, tasks, resume=resume))
    campaign = Campaign(
        job,
        experiment.store,
        stage=stage,
        ranks_per_run=ranks_per_run(experiment.config, stage, job.world_size),
        observer=observer,
        wait=wait,
    )
    campaign.run(tasks)


def _record(experiment: Experiment, tasks: Sequence[Task], *, resume: bool) -> None:
    """Write the resolved config; forget what is not to be resumed."""
    config = experiment.config
    content = {"config": config.model_dump(mode="json")}
    write_json(Path(config.output_dir) / "config.json", "config", content)
    if not resume:
        for task in tasks:
            _require_unclaimed(experiment.store.folder(task.spec))
        for task in tasks:
            experiment.store.forget_progress(task.spec)


def _require_unclaimed(folder: Path) -> None:
    """Refuse to delete what another job is training."""
    claim = read_claim(folder)
    if claim is not None and not claim.is_given_up:
        raise ValueError(
            f"--no-resume would delete {folder}, which {claim.owner} is training; end that job "
            "first, or leave --no-resume out (should it be gone for good, delete the folder)"
        )


def _select(specs: Sequence[RunSpec], only: Sequence[str]) -> list[int]:
    """Indices of the specs named by run id, identity or label."""
    if not only:
        return list(range(len(specs)))
    chosen = []
    for name in only:
        matches = [
            index
            for index, spec in enumerate(specs)
            if name in (spec.run_id, spec.identity, spec.label)
        ]
        if not matches:
            raise ValueError(
                f"--only {name}: no run of this experiment; `autoscale plan` lists them"
            )
        chosen += matches
    return chosen


def _require_trained(specs: Sequence[RunSpec], experiment: Experiment) -> None:
    for spec in specs:
        if experiment.store.status(spec) == "failed":
            raise ValueError(f"run {spec.run_id} failed: {experiment.store.failure(spec).message}")
