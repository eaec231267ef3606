"""The command line: parse, call the function of the same name, print the path written."""

import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer
from rich.console import Console

from . import __version__, stages
from .audit import audit_run
from .bench.report import report_bench
from .bench.table import bench_table
from .carry_command import CarryOptions, carry_file
from .config import ExperimentConfig, load_config
from .downstream import BATCH_SIZE, FEWEST, evaluate_downstream, evaluate_texts, left_out
from .downstream_tables import task_table, text_table
from .existing_shards import Adoption, adopt
from .job_watch import tell_end
from .law_tables import fit_lines, mixture_lines, transfer_lines
from .laws.repetition import PUBLISHED_RATE
from .manifest import Manifest
from .manifest_table import manifest_table
from .plan_tables import plan_table
from .prepare import prepare as prepare_shards
from .progress import ProgressDisplay
from .records import read_json, write_json
from .report import report as write_report
from .run_table import Metric
from .shard_names import Naming, parse_domains, parse_validation
from .shared_errors import RemoteError, SharedMistake
from .status import StatusReader
from .status import status as read_status
from .status_table import status_table
from .status_table import watch as watch_status
from .stop_request import STOPPED, StopRequested, listen
from .summary import summarise
from .table_commands import (
    TableFit,
    TableQuestion,
    fit_table,
    predict_table,
    solve_table,
)
from .table_options import (
    parse_available,
    parse_bytes_per_token,
    parse_group,
    parse_pull,
    parse_rate,
)
from .terminal import audit_table, summary_table
from .token_count import parse_token_count
from .verification import verify as verify_data

if TYPE_CHECKING:
    from .distributed import Job

T = TypeVar("T")

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
FitFile = Annotated[Path, typer.Argument(help="fit.json of an experiment or a table.")]
Available = Annotated[
    str | None,
    typer.Option(help="Unique tokens: domain=tokens,... or a .json file; models repetition."),
]
BytesPerToken = Annotated[
    str | None, typer.Option(help="set=bytes,... for the objective bits_per_byte.")
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
def prepare(
    context: typer.Context,
    experiment: Annotated[
        Path | None, typer.Argument(help="Experiment file (TOML); or give --from or --verify.")
    ] = None,
    overrides: Overrides = None,
    source: Annotated[
        str | None, typer.Option("--from", help="Folder or URL of token shards to adopt.")
    ] = None,
    verify: Annotated[
        Path | None, typer.Option(help="Manifest or experiment file: check all of its data.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Default: manifest.json in the folder.")
    ] = None,
    domain: Annotated[
        list[str] | None, typer.Option(help="name=glob; repeatable. Default: names of folders.")
    ] = None,
    validation: Annotated[
        list[str] | None,
        typer.Option(help="Glob of what to hold out, or a fraction in whole shards; repeatable."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or name of the tokenizer that made the tokens.")
    ] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Without --tokenizer.", min=1)] = None,
    end_of_text_id: Annotated[int | None, typer.Option(help="Without --tokenizer.", min=0)] = None,
    dtype: Annotated[str | None, typer.Option(help="Of tokens in files without header.")] = None,
    column: Annotated[str | None, typer.Option(help="With the tokens, of data sets.")] = None,
) -> None:
    """Make a manifest: of texts (an experiment's [prepare] section), or of shards that exist.

    All options from -o on are for --from. --verify reads all data and lists what is wrong with it.
    """
    _require_one_mode(context, [experiment, source, verify], overrides)
    if verify is not None:
        _verify(verify, overrides or ())
    elif experiment is not None:
        config = load_config(experiment, overrides or ())
        with ProgressDisplay() as display:
            path = _prepare(config, display)
        _wrote(path)
    else:
        globs, fraction = parse_validation(validation or ())
        _adopt(
            Adoption(
                folder=str(source),
                output=output,
                naming=Naming(domains=parse_domains(domain or ()), validation=globs),
                held_out_fraction=fraction,
                tokenizer=tokenizer,
                vocab_size=vocab_size,
                end_of_text_id=end_of_text_id,
                dtype=dtype,
                column=column,
            )
        )


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

    with _job() as job, _display(job) as display:
        config = _load_in_job(job, experiment, overrides)
        coordinator.probe(
            job,
            config,
            observer=display.campaign,
            only=only or (),
            resume=resume,
            stop=listen(),
        )
        if job.is_root:
            console.print(status_table(read_status(config)))


@app.command()
def fit(
    context: typer.Context,
    experiment: Annotated[
        Path | None, typer.Argument(help="Experiment file (TOML); or give --table.")
    ] = None,
    overrides: Overrides = None,
    table: Annotated[Path | None, typer.Option(help="Table of runs (CSV).")] = None,
    output: Annotated[Path, typer.Option("-o", "--output")] = Path("fit.json"),
    law: Annotated[str, typer.Option(help="auto, autoscale, eti, ...")] = "auto",
    objective: Annotated[
        str, typer.Option(help="mean, worst, perplexity, bits_per_byte, or set=weight,...")
    ] = "mean",
    bytes_per_token: BytesPerToken = None,
    perplexity: Annotated[
        bool, typer.Option("--perplexity", help="The table's losses are perplexities.")
    ] = False,
    metric: Annotated[Metric, typer.Option(help="Unit of the table's losses.")] = "nats",
    available: Available = None,
    rate: Annotated[
        str, typer.Option(help="R* of repeated tokens, or 'fit'.")
    ] = f"{PUBLISHED_RATE:.4g}",
    folds: Annotated[int, typer.Option(help="Folds of the held-out error.", min=2)] = 5,
    draws: Annotated[int, typer.Option(help="Bootstrap draws.", min=2)] = 40,
    seed: Annotated[int, typer.Option(help="Of folds and draws.", min=0)] = 0,
) -> None:
    """Fit the law to the probe runs of an experiment, or to a table of runs.

    All options but --set are for --table; an experiment has its settings in its file.
    """
    if (experiment is None) == (table is None):
        raise ValueError("give an experiment file, or --table with a CSV of runs, not both")
    if experiment is not None:
        _refuse_given(context, except_for={"experiment", "overrides"}, remedy="set it in [fit]")
        _wrote(stages.fit(load_config(experiment, overrides or ())))
        return
    assert table is not None
    if overrides:
        raise ValueError("--set overrides an experiment file; --table has options of its own")
    settings = TableFit(
        law=law,
        objective=objective,
        perplexity=perplexity,
        metric=metric,
        bytes_per_token=_parsed(parse_bytes_per_token, bytes_per_token),
        available=_parsed(parse_available, available),
        rate=parse_rate(rate),
        folds=folds,
        draws=draws,
        seed=seed,
    )
    path = fit_table(table, output, settings)
    console.print(fit_lines(read_json(path, "fit")))
    _wrote(path)


@app.command()
def predict(
    fit: FitFile,
    table: Annotated[Path, typer.Option(help="Table of runs (CSV); losses are not needed.")],
    output: Annotated[Path, typer.Option("-o", "--output")] = Path("predicted.csv"),
) -> None:
    """Predict the losses of runs from a fitted law, with 90% intervals."""
    _wrote(predict_table(fit, table, output))


@app.command()
def solve(
    fit: FitFile,
    output: Annotated[Path, typer.Option("-o", "--output")] = Path("mixture.json"),
    tokens: Annotated[str | None, typer.Option(help="Token budget such as 10B.")] = None,
    parameters: Annotated[str | None, typer.Option(help="Model size such as 1B.")] = None,
    objective: Annotated[str | None, typer.Option(help="By default that of the fit.")] = None,
    bytes_per_token: BytesPerToken = None,
    pareto: Annotated[
        str | None, typer.Option(help="Second objective: write the front between the two.")
    ] = None,
    points: Annotated[int, typer.Option(help="Of the front.", min=2)] = 11,
    min_weight: Annotated[float, typer.Option(help="Of every domain.")] = 0.0,
    max_weight: Annotated[float, typer.Option(help="Of every domain.")] = 1.0,
    available: Available = None,
    max_epochs: Annotated[float | None, typer.Option(help="Cap from --available.")] = None,
    group: Annotated[
        list[str] | None, typer.Option(help="name:domain+domain=low..high; repeatable.")
    ] = None,
    reference: Annotated[
        str, typer.Option(help="Mixture file to compare with, uniform, or natural.")
    ] = "uniform",
    no_harm: Annotated[
        float | None, typer.Option(help="Most that a loss may exceed the reference's.")
    ] = None,
    pull: Annotated[str | None, typer.Option(help="kl:strength or l2:strength.")] = None,
) -> None:
    """The best mixture of a fitted law at a budget, with its certificate and intervals."""
    question = TableQuestion(
        tokens=_parsed(parse_token_count, tokens),
        parameters=_parsed(parse_token_count, parameters),
        objective=objective,
        bytes_per_token=_parsed(parse_bytes_per_token, bytes_per_token),
        pareto=pareto,
        num_points=points,
        min_weight=min_weight,
        max_weight=max_weight,
        max_epochs=max_epochs,
        available=_parsed(parse_available, available),
        groups=tuple(map(parse_group, group or ())),
        reference=reference,
        no_harm=no_harm,
        pull=_parsed(parse_pull, pull),
    )
    path = solve_table(fit, output, question)
    console.print(mixture_lines(read_json(path, "mixture")))
    _wrote(path)


@app.command()
def carry(
    table: Annotated[Path, typer.Option(help="Table of runs (CSV), some mixtures at both sizes.")],
    to_parameters: Annotated[str, typer.Option(help="Model size to carry losses to: 774M.")],
    output: Annotated[Path, typer.Option("-o", "--output")] = Path("carried.csv"),
    from_parameters: Annotated[
        str | None, typer.Option(help="Model size to carry from; default: the table's other one.")
    ] = None,
    form: Annotated[
        Literal["auto", "factor", "line", "shifted_power"], typer.Option(help="Of the curves.")
    ] = "auto",
    perplexity: Annotated[
        bool, typer.Option("--perplexity", help="The table's losses are perplexities.")
    ] = False,
    metric: Annotated[Metric, typer.Option(help="Unit of the table's losses.")] = "nats",
    draws: Annotated[int, typer.Option(help="Bootstrap draws.", min=2)] = 200,
    seed: Annotated[int, typer.Option(help="Of the draws.", min=0)] = 0,
) -> None:
    """Carry the losses of small models to a larger size, by loss-to-loss curves of paired runs."""
    options = CarryOptions(
        to_parameters=parse_token_count(to_parameters),
        from_parameters=_parsed(parse_token_count, from_parameters),
        form=form,
        perplexity=perplexity,
        metric=metric,
        draws=draws,
        seed=seed,
    )
    console.print(transfer_lines(*carry_file(table, output, options)))
    _wrote(output)


@app.command()
def downstream(
    model_folder: Annotated[Path, typer.Argument(help="As a run exports it: RUN/model.")],
    tasks: Annotated[Path | None, typer.Option(help="Folder with files of tasks.")] = None,
    texts: Annotated[
        Path | None, typer.Option("--ood", help="Folder of texts, one set a file.")
    ] = None,
    only: Annotated[str | None, typer.Option(help="Tasks, comma-separated.")] = None,
    limit: Annotated[
        int | None, typer.Option(help="Most examples or documents of each.", min=FEWEST)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Sequences a forward pass.", min=1)] = BATCH_SIZE,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the scores here.")] = None,
) -> None:
    """Zero-shot tasks of lm-eval, and losses on texts, of an exported model; nothing is fetched."""
    if tasks is None and texts is None:
        raise ValueError("give --tasks with a folder of tasks, --ood with one of texts, or both")
    if only and tasks is None:
        raise ValueError("--only names tasks; give --tasks with their folder too")
    names = only.split(",") if only else []
    found: dict[str, list[Any]] = {"tasks": [], "texts": []}
    if tasks is not None:
        found["tasks"] = evaluate_downstream(
            model_folder, tasks, only=names, limit=limit, batch_size=batch_size
        )
        console.print(task_table(found["tasks"], () if names else left_out(tasks)))
    if texts is not None:
        found["texts"] = evaluate_texts(model_folder, texts, limit=limit, batch_size=batch_size)
        console.print(text_table(found["texts"]))
    if json_file is not None:
        rows = {kind: [asdict(score) for score in scores] for kind, scores in found.items()}
        _wrote(write_json(json_file, "downstream", {"model": str(model_folder), **rows}))


@app.command()
def project(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    tokens: Annotated[
        str | None, typer.Option(help="Token budget such as 10B; default train.budget.")
    ] = None,
) -> None:
    """Carry the optima at the probe budgets to the target budget."""
    budget = _parsed(parse_token_count, tokens)
    _wrote(stages.project(load_config(experiment, overrides or ()), budget))


@app.command()
def train(experiment: ExperimentFile, overrides: Overrides = None, resume: Resume = True) -> None:
    """Train the target run on the projected mixture and on every baseline."""
    from . import coordinator

    with _job() as job, _display(job) as display:
        config = _load_in_job(job, experiment, overrides)
        coordinator.train(job, config, observer=display.campaign, resume=resume, stop=listen())
        if job.is_root:
            console.print(status_table(read_status(config)))


@app.command()
def report(experiment: ExperimentFile, overrides: Overrides = None) -> None:
    """Write report.html and report.json from whatever has been done so far."""
    config = load_config(experiment, overrides or ())
    path = write_report(config)
    console.print(summary_table(summarise(config)))
    _wrote(path)


@app.command()
def status(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again and again until all runs are done.")
    ] = False,
    every: Annotated[
        float, typer.Option(help="Seconds between two looks of --watch.", min=0.1)
    ] = 5.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document instead of the table.")
    ] = False,
) -> None:
    """Show what is done, running where, failed and why, waiting and spent, while jobs run too."""
    reader = StatusReader(load_config(experiment, overrides or ()))
    if watch and as_json:
        raise ValueError("--json is one look and --watch many; give one of them")
    if watch:
        watch_status(reader, console, every)
    elif as_json:
        print(json.dumps(reader.read(), indent=1, allow_nan=False))
    else:
        console.print(status_table(reader.read()))


@app.command()
def audit(
    run_folder: Annotated[Path, typer.Argument(help="Folder of a run, under runs/.")],
    manifest: Annotated[
        Path | None, typer.Option(help="Of its data; by default that of the experiment.")
    ] = None,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Read all rows again and compare their checksum.")
    ] = False,
) -> None:
    """Recount what a run drew, and compare it with the run's record; status 2 where they differ."""
    found = audit_run(run_folder, manifest_path=manifest, read_tokens=tokens)
    console.print(audit_table(found))
    if found.problems:
        raise ValueError("; ".join(found.problems))


@app.command()
def run(experiment: ExperimentFile, overrides: Overrides = None, resume: Resume = True) -> None:
    """Do everything in one job: prepare, plan, probe, fit, project, train, report."""
    from . import coordinator

    with _job() as job:
        config = _load_in_job(job, experiment, overrides)
        with _display(job) as display:
            path = coordinator.run(
                job,
                config,
                observer=display.campaign,
                prepare=lambda config: _prepare(config, display),
                report=write_report,
                resume=resume,
                stop=listen(),
            )
        if job.is_root:
            console.print(summary_table(summarise(config)))
            _wrote(path)


@app.command()
def bench(experiment: ExperimentFile, overrides: Overrides = None, resume: Resume = True) -> None:
    """Compare mixture methods with uniform weights at equal probe cost: bench.html, .md, .json."""
    from .bench.job import bench as train_bench

    with _job() as job:
        config = _load_in_job(job, experiment, overrides)
        with _display(job) as display:
            train_bench(job, config, observer=display.campaign, resume=resume, stop=listen())
        if job.is_root:
            path = report_bench(config)
            console.print(bench_table(read_json(path.with_suffix(".json"), "bench")))
            _wrote(path)


def _parsed(parse: Callable[[str], T], text: str | None) -> T | None:
    return None if text is None else parse(text)


def _refuse_given(
    context: typer.Context, *, except_for: set[str], remedy: str, mode: str = "--table"
) -> None:
    """Raise ValueError for an option on the command line that would have no effect."""
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        given = source is not None and source.name == "COMMANDLINE"
        if given and parameter.name not in except_for:
            raise ValueError(f"{parameter.opts[-1]} is for {mode}; {remedy}")


def _prepare(config: ExperimentConfig, display: ProgressDisplay) -> Path:
    if config.prepare is None:
        raise ValueError("the experiment has no [prepare] section; its data is data.manifest")
    return prepare_shards(config.prepare, progress=display.stage)


def _require_one_mode(
    context: typer.Context, modes: Sequence[Any], overrides: Sequence[str] | None
) -> None:
    """Refuse two modes of `prepare` at once, and options of another one."""
    if modes.count(None) != len(modes) - 1:
        raise ValueError("give one of an experiment file, --from FOLDER, or --verify FILE")
    if context.params["source"] is None:
        _refuse_given(
            context,
            except_for={"experiment", "verify", "overrides"},
            mode="--from",
            remedy="leave it out, or set it in [prepare]",
        )
    elif overrides:
        raise ValueError("--set overrides an experiment file; --from has options of its own")


def _adopt(adoption: Adoption) -> None:
    with ProgressDisplay() as display:
        path = adopt(adoption, progress=display.stage)
    console.print(manifest_table(Manifest.load(path)))
    _wrote(path)


def _verify(path: Path, overrides: Sequence[str]) -> None:
    """Exit with status 2 after one line for each problem."""
    if path.suffix != ".json":
        path = load_config(path, overrides).manifest_path
    with ProgressDisplay() as display:
        problems = verify_data(Manifest.load(path), progress=display.stage)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        raise typer.Exit(2)
    console.print(f"{path} and all its data are in order", soft_wrap=True, highlight=False)


@contextmanager
def _job() -> "Iterator[Job]":
    """The ranks of this job; they leave together when all went well, or was stopped in order."""
    listen()
    from . import coordinator
    from .distributed import running_job

    stopped = None
    with running_job() as job:
        coordinator.share_request(job, listen())
        try:
            yield job
        except StopRequested as error:
            stopped = error
        listen().close()
    if stopped is not None:
        raise stopped


def _load_in_job(job: "Job", experiment: Path, overrides: Sequence[str] | None) -> ExperimentConfig:
    from . import coordinator

    config = coordinator.load_experiment_file(job, experiment, overrides or ())
    coordinator.stop_before_end(job, config, listen())
    return config


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
        if rank == "0" or not isinstance(error, SharedMistake):
            prefix = "error" if rank == "0" else f"rank {rank}: error"
            print(f"{prefix}: {error}", file=sys.stderr, flush=True)
        _leave(2)
    except StopRequested as error:
        if _launched_rank() == "0":
            print(_farewell(error), file=sys.stderr)
        _leave(error.stop.status)
    except RemoteError as error:
        if _launched_rank() == "0" or error.root_is_lost:
            tell_end(int(_launched_rank()), str(error))
        _leave(1)
    except Exception:
        traceback.print_exc()
        _leave(1)


def _farewell(stopped: StopRequested) -> str:
    """What was saved when the job was told to stop, a line for each run, and how to go on."""
    if stopped.stop.status != STOPPED:
        return "\n".join([*stopped.saved, f"error: {stopped.stop.reason}"])
    again = "start the same command again to go on"
    return "\n".join([*stopped.saved, f"stopped ({stopped.stop.reason}): {again}"])


def _leave(status: int) -> None:
    """End without an orderly shutdown of the process group: other ranks may be gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        time.sleep(1)  # launchers end the other ranks at once, also one that is to speak
    os._exit(status)
