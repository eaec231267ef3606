"""The command line: parse, call the function of the same name, print the path written."""

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from . import __version__, stages
from .config import ExperimentConfig, load_config
from .prepare import prepare as prepare_shards
from .progress import ProgressDisplay
from .records import read_json
from .report import report as write_report
from .summary import summarise
from .terminal import plan_table, status_table, summary_table
from .token_count import parse_token_count

if TYPE_CHECKING:
    from .distributed import Job

app = typer.Typer(
    name="autoscale",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    help="How much of each data source, at your scale: probe, fit, project, train.",
)
console = Console(width=None if sys.stdout.isatty() else 120)

ExperimentFile = Annotated[Path, typer.Argument(help="Experiment file (TOML).")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one value; repeatable."),
]
Resume = Annotated[
    bool,
    typer.Option(help="Continue interrupted runs from their checkpoints, else from their start."),
]


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    local_rank: Annotated[int, typer.Option("--local_rank", hidden=True)] = 0,
) -> None:
    # Launchers pass --local_rank; ranks are read from the environment instead.
    if version:
        console.print(f"autoscale {__version__}")
        raise typer.Exit


@app.command()
def prepare(experiment: ExperimentFile, overrides: Overrides = None) -> None:
    """Turn the texts of the [prepare] section into tokenized shards and a manifest."""
    config = load_config(experiment, overrides or ())
    with ProgressDisplay() as display:
        path = _prepare(config, display)
    _wrote(path)


@app.command()
def plan(experiment: ExperimentFile, overrides: Overrides = None) -> None:
    """List the runs that the experiment needs, with tokens, FLOPs and cost; train nothing."""
    path = stages.plan(load_config(experiment, overrides or ()))
    console.print(plan_table(read_json(path, "plan")))
    _wrote(path)


@app.command()
def probe(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Run id or label; repeatable. Default: all.")
    ] = None,
    resume: Resume = True,
) -> None:
    """Train the probe runs that have no result yet."""
    from . import coordinator

    config = load_config(experiment, overrides or ())
    with _job() as job, _display(job) as display:
        coordinator.probe(job, config, observer=display.campaign, only=only or (), resume=resume)
        if job.is_root:
            console.print(status_table(stages.status(config)))


@app.command()
def fit(experiment: ExperimentFile, overrides: Overrides = None) -> None:
    """Fit the law at every probe budget and solve for the best mixture there."""
    _wrote(stages.fit(load_config(experiment, overrides or ())))


@app.command()
def project(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    tokens: Annotated[
        str | None, typer.Option(help="Token budget such as 10B; default train.budget.")
    ] = None,
) -> None:
    """Carry the optima at the probe budgets to the target budget."""
    budget = None if tokens is None else parse_token_count(tokens)
    _wrote(stages.project(load_config(experiment, overrides or ()), budget))


@app.command()
def train(experiment: ExperimentFile, overrides: Overrides = None, resume: Resume = True) -> None:
    """Train the target run on the projected mixture and on every baseline."""
    from . import coordinator

    config = load_config(experiment, overrides or ())
    with _job() as job, _display(job) as display:
        coordinator.train(job, config, observer=display.campaign, resume=resume)
        if job.is_root:
            console.print(status_table(stages.status(config)))


@app.command()
def report(experiment: ExperimentFile, overrides: Overrides = None) -> None:
    """Write report.html and report.json from whatever has been done so far."""
    config = load_config(experiment, overrides or ())
    path = write_report(config)
    console.print(summary_table(summarise(config)))
    _wrote(path)


@app.command()
def status(experiment: ExperimentFile, overrides: Overrides = None) -> None:
    """Show which runs are finished, interrupted, failed or waiting."""
    console.print(status_table(stages.status(load_config(experiment, overrides or ()))))


@app.command()
def run(experiment: ExperimentFile, overrides: Overrides = None, resume: Resume = True) -> None:
    """Do everything in one job: prepare, plan, probe, fit, project, train, report."""
    from . import coordinator

    config = load_config(experiment, overrides or ())
    with _job() as job:
        with _display(job) as display:
            path = coordinator.run(
                job,
                config,
                observer=display.campaign,
                prepare=lambda config: _prepare(config, display),
                report=write_report,
                resume=resume,
            )
        if job.is_root:
            console.print(summary_table(summarise(config)))
            _wrote(path)


def _prepare(config: ExperimentConfig, display: ProgressDisplay) -> Path:
    if config.prepare is None:
        raise ValueError("the experiment has no [prepare] section; its data is data.manifest")
    return prepare_shards(config.prepare, progress=display.stage)


@contextmanager
def _job() -> "Iterator[Job]":
    """The ranks of this job; they leave together when all went well."""
    from .distributed import start_job, stop_job

    yield start_job()
    stop_job()


@contextmanager
def _display(job: "Job") -> Iterator[Any]:
    """Progress on the terminal of rank 0; the other ranks show nothing."""
    with ProgressDisplay(enabled=job.is_root) as display:
        yield display


def _wrote(path: Path) -> None:
    console.print(f"wrote {path}", soft_wrap=True, highlight=False)


def _launched_rank() -> str:
    """This process's rank for messages, also before the job has started."""
    names = ("RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID", "PMI_RANK")
    return next((os.environ[name] for name in names if name in os.environ), "0")


def main() -> None:
    """Entry point: user mistakes exit with status 2 and one message, without a traceback."""
    logging.basicConfig(
        level=logging.INFO if _launched_rank() == "0" else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )
    try:
        app()
    except ValueError as error:
        rank = _launched_rank()
        prefix = "error" if rank == "0" else f"rank {rank}: error"
        print(f"{prefix}: {error}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            time.sleep(1)  # launchers end the other ranks at once, which have the same to say
        os._exit(2)  # other ranks may be gone: no orderly shutdown of the process group
