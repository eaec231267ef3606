"""A benchmark on the ranks of a job: first what waits for nothing, then the mixtures chosen."""

from pathlib import Path

from ..campaign import Observer, Task, unobserved
from ..config import ExperimentConfig
from ..coordinator import on_root, open_experiment, run_tasks
from ..distributed import Job
from ..mixture import Mixture
from ..run_records import keep_results, restore_results
from ..runs import RunSpec
from ..stop_request import StopRequest
from .choices import choices_path, choose
from .plan import BenchPlan


def bench(
    job: Job,
    config: ExperimentConfig,
    *,
    observer: Observer = unobserved,
    resume: bool = True,
    stop: StopRequest | None = None,
) -> None:
    """Train what is left of a benchmark; its report is made from the results.

    Raises:
        StopRequested: on every rank, once what was in progress is saved.
    """
    stop = stop or StopRequest()
    experiment = open_experiment(job, config, ["train"])
    plan = job.on_each(lambda: BenchPlan(experiment))
    records = plan.bench.records
    if records is not None:
        job.from_root(lambda: restore_results(Path(records), experiment.store))

    def train(stage: str, specs: list[RunSpec]) -> None:
        tasks = [Task(spec=spec, execution=plan.execution(spec)) for spec in specs]
        try:
            run_tasks(job, experiment, stage, tasks, observer, resume=resume, wait=True, stop=stop)
        finally:
            if records is not None and job.is_root:
                keep_results(experiment.store, Path(records))

    train("bench", plan.first_specs())
    train("bench-proxies", plan.second_specs())
    choices = on_root(
        job, stop, lambda: [each.to_dict() for each in choose(plan, choices_path(config))]
    )
    mixtures = [
        (f"{each['objective']}-{each['method']}", Mixture.from_mapping(each["weights"]))
        for each in choices
        if each["weights"] is not None
    ]
    train("bench-targets", plan.target_specs(mixtures))
