"""Rank 0 decides, every rank trains: the stages that need the whole job.

`run` is the method end to end: prepare, probe, fit, project, train, report. Between the stages
rank 0 alone solves and writes; what the others need goes out as JSON, and an error on rank 0
stops every rank with the same message.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist

from . import stages
from .campaign import Campaign, Observer, Task, unobserved
from .claims import read_claim
from .config import ExperimentConfig, load_config
from .distributed import JOB_TIMEOUT, Job
from .execution import micro_batch_size, require_equal_groups
from .experiment_memory import require_fitting_devices
from .planning import Experiment
from .provenance import commit, library_versions, source_digest
from .records import write_json
from .run_folder import RunFolders
from .runs import RunSpec
from .slurm_job import end_of_job
from .spending import watch_hours
from .stop_request import Stop, StopRequest, StopRequested

PrepareStage = Callable[[ExperimentConfig], Path]


def open_experiment(job: Job, config: ExperimentConfig, to_do: Sequence[str]) -> Experiment:
    """Check the experiment on rank 0 first, then on all ranks, and that all see the same.

    Args:
        to_do: what the job will do, `probe` or `train` or both; their ranks are checked now.
    """

    of_root: list[Experiment] = []

    def check() -> None:
        of_root.append(Experiment(config))
        for stage in to_do:
            _check_ranks(stage, of_root[0], job.world_size)

    require_same_program(job, config)
    job.from_root(check)
    experiment = job.on_each(lambda: of_root[0] if of_root else Experiment(config))
    settings = json.dumps(experiment.deepspeed, sort_keys=True)
    job.require_agreement(
        {"data fingerprint": experiment.data_fingerprint, "DeepSpeed settings": _digest(settings)}
    )
    return experiment


def load_experiment_file(job: Job, path: Path, overrides: Sequence[str]) -> ExperimentConfig:
    """The experiment as each rank reads it; all ranks stop when one of them cannot."""
    return job.on_each(lambda: load_config(path, overrides))


def require_same_program(job: Job, config: ExperimentConfig) -> None:
    """Stop every rank unless all have the same experiment, code and libraries."""
    # Where the texts lay matters to `prepare` alone, which runs on rank 0.
    content = config.model_dump_json(exclude={"prepare"})
    libraries = ", ".join(f"{name} {version}" for name, version in library_versions().items())
    job.require_agreement(
        {
            "experiment hash": _digest(content),
            "code version": f"{commit() or 'without a repository'} (sources {source_digest()})",
            "libraries": libraries,
        }
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _check_ranks(stage: str, experiment: Experiment, world_size: int) -> None:
    """The ranks of a run must exist and divide its batch."""
    ranks = ranks_per_run(experiment.config, stage, world_size)
    if ranks > world_size:
        raise ValueError(
            f"{stage}.ranks_per_run is {ranks} but the job has {world_size} ranks; start more "
            "ranks or lower it"
        )
    diloco = experiment.config.train.diloco
    if stage == "train" and diloco is not None:
        require_equal_groups(diloco.groups, ranks)
    for where, sequences in experiment.batches():
        if where.startswith(stage):
            micro_batch_size(sequences, ranks, experiment.config.trainer.micro_batch_size)
    require_fitting_devices(experiment, "train" if stage == "train" else "probe", ranks)


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
    stop: StopRequest | None = None,
) -> None:
    """Do the probe runs that are left, side by side over the ranks.

    Any number of jobs may do so at once on one output folder: each run is trained by one of them.

    Args:
        only: run ids or labels; by default all.
        resume: continue interrupted runs from their checkpoints, else from their first step.
        wait: return only when the runs that other jobs train are done as well.
        stop: what tells the job to stop; by default nothing but its budgets.

    Raises:
        StopRequested: on every rank, once what was in progress is saved.
    """
    experiment = open_experiment(job, config, ["probe"])
    planned = [planned.spec for planned in experiment.probes()]
    chosen = job.from_root(lambda: _select(planned, only))
    tasks = [
        Task(spec=spec, execution=experiment.execution(spec, export=False, is_probe=True))
        for spec in (planned[index] for index in chosen)
    ]
    stop = stop or StopRequest()
    run_tasks(job, experiment, "probe", tasks, observer, resume=resume, wait=wait, stop=stop)


def train(
    job: Job,
    config: ExperimentConfig,
    *,
    observer: Observer = unobserved,
    resume: bool = True,
    stop: StopRequest | None = None,
) -> None:
    """Train the target on the projected mixture and on every baseline, under every seed.

    Raises:
        StopRequested: on every rank, once what was in progress is saved.
    """
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
    stop = stop or StopRequest()
    run_tasks(job, experiment, "train", tasks, observer, resume=resume, wait=True, stop=stop)
    job.from_root(lambda: _require_trained([task.spec for task in tasks], experiment))


def run(
    job: Job,
    config: ExperimentConfig,
    *,
    observer: Observer = unobserved,
    prepare: PrepareStage,
    report: Callable[[ExperimentConfig], Path],
    resume: bool = True,
    stop: StopRequest | None = None,
) -> Path:
    """All stages in one job; returns the path of the report.

    Args:
        prepare: makes the shards; called on rank 0 when the experiment has a `prepare` section.
        report: writes the report; called on rank 0 at the end.

    Raises:
        StopRequested: on every rank, once what was in progress is saved.
    """
    stop = stop or StopRequest()
    require_same_program(job, config)
    if config.prepare is not None:
        on_root(job, stop, lambda: str(prepare(config)))
    open_experiment(job, config, ["probe", "train"])
    on_root(job, stop, lambda: str(stages.plan(config)))
    probe(job, config, observer=observer, resume=resume, wait=True, stop=stop)
    on_root(job, stop, lambda: [str(stages.fit(config)), str(stages.project(config))])
    train(job, config, observer=observer, resume=resume, stop=stop)
    return Path(on_root(job, stop, lambda: str(report(config))))


def share_request(job: Job, stop: StopRequest) -> None:
    """From now on a request to stop that reaches one rank reaches all."""
    stop.connect(_Board(job))


def stop_before_end(job: Job, config: ExperimentConfig, stop: StopRequest) -> None:
    """Stop in time before the Slurm job is ended, if the ranks are in one.

    Raises:
        ValueError: on every rank, when no time is left to train in.
    """
    seconds = 60 * config.limits.stop_before_end_minutes
    job.from_root(lambda: stop.stop_before(lambda: end_of_job(os.environ), seconds))


class _Board:
    """A key of the job's store; on a connection of its own, as the other one may be waiting."""

    def __init__(self, job: Job) -> None:
        self._store = dist.TCPStore(
            job.store.host, job.store.port, is_master=False, timeout=JOB_TIMEOUT
        )

    def post(self, text: str) -> None:
        self._store.compare_set("stop", "", text)

    def read(self) -> str | None:
        return self._store.get("stop").decode() if self._store.check(["stop"]) else None


def on_root(job: Job, stop: StopRequest, compute: Callable[[], Any]) -> Any:
    """A stage on rank 0, which a request to stop ends; its value for every rank."""

    def attempt() -> dict[str, Any]:
        try:
            with stop.interrupting():
                return {"value": compute()}
        except StopRequested as stopped:
            return {"stop": asdict(stopped.stop)}

    answer = job.from_root(attempt)
    if "stop" in answer:
        raise StopRequested(Stop(**answer["stop"]))
    return answer["value"]


def run_tasks(
    job: Job,
    experiment: Experiment,
    stage: str,
    tasks: Sequence[Task],
    observer: Observer,
    *,
    resume: bool,
    wait: bool,
    stop: StopRequest,
) -> None:
    """Do what is left of some runs of an experiment, side by side over the ranks.

    Raises:
        StopRequested: on every rank, once what was in progress is saved.
    """
    job.from_root(lambda: _record(experiment, tasks, resume=resume))
    campaign = Campaign(
        job,
        experiment.store,
        stage=stage,
        ranks_per_run=ranks_per_run(experiment.config, stage, job.world_size),
        observer=observer,
        wait=wait,
        stop=stop,
        out_of_budget=watch_hours(experiment.config.limits, RunFolders(experiment.store.root)),
    )
    campaign.run(tasks)


def _record(experiment: Experiment, tasks: Sequence[Task], *, resume: bool) -> None:
    """Check the limits, write the resolved config, and forget what is not to be resumed."""
    stages.check_limits(experiment)
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
