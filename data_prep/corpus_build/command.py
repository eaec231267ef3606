"""The command line of `data_prep/build.py`: what is asked for, checked, and run or submitted."""

import argparse
import os
import sys
from pathlib import Path

from corpora import LAYOUTS, CorpusFiles, find_files
from d4 import parse_ratios

from .executors import SlurmOptions, run_locally, submit
from .report import format_report, load_report
from .splitting import Split
from .stages import BuildSettings, Selection, make_stages


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="build.py",
        description="A corpus to token shards, in one command, made of datatrove pipelines.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    text = parser.add_argument_group("text")
    text.add_argument(
        "--corpus",
        nargs="+",
        required=True,
        metavar="NAME[=SOURCE]",
        help=f"one or more of {', '.join(LAYOUTS)}",
    )
    text.add_argument("--source", help="folder or fsspec URL; by default the hub's, if it has one")
    text.add_argument("--files", nargs="+", default=[], help="other globs below the source")
    text.add_argument(
        "--domains", type=_names, default=[], help="those to take, in their order of precedence"
    )
    text.add_argument("--domain-field", help="for jsonl: field with the domain, e.g. meta.source")
    text.add_argument("--text-field", help="another field with the text")
    steps = parser.add_argument_group("steps")
    steps.add_argument(
        "--filters", choices=("none", "quality"), default="none", help="Gopher's rules, for prose"
    )
    steps.add_argument("--filter-domains", type=_names, default=[], help="only these; else all")
    steps.add_argument("--minhash", action=argparse.BooleanOptionalAction, default=True)
    steps.add_argument(
        "--across-domains", action="store_true", help="near-duplicates between domains go too"
    )
    steps.add_argument(
        "--decontaminate", nargs="+", default=[], metavar="FILE", help="evaluation sets"
    )
    steps.add_argument("--ngram", type=int, default=13, help="words that count as overlap")
    steps.add_argument("--select", metavar="R_DEDUP,R_PROTO", help="D4: fractions to keep")
    steps.add_argument("--encoder", type=Path, help="folder of D4's sentence encoder")
    steps.add_argument("--clusters", type=int, help="of D4's k-means; default: a square root")
    steps.add_argument("--validation-fraction", type=float, default=0.005)
    steps.add_argument("--seed", type=int, default=0)
    run = parser.add_argument_group("output and execution")
    run.add_argument("--output", type=Path, required=True, help="folder of the manifest")
    run.add_argument("--tokenizer", required=True, help="folder or hub name")
    run.add_argument("--tasks", type=int, default=os.cpu_count() or 1, help="parts of the files")
    run.add_argument("--workers", type=int, help="tasks at once; default: CPUs, on Slurm no limit")
    run.add_argument("--executor", choices=("local", "slurm"), default="local")
    run.add_argument("--slurm-partition", help="needed for slurm")
    run.add_argument("--slurm-time", default="10:00:00")
    run.add_argument("--slurm-cpus-per-task", type=int, default=1)
    run.add_argument("--slurm-mem-per-cpu-gb", type=int, default=4)
    run.add_argument("--slurm-qos", default="")
    run.add_argument("--slurm-setup", default="", help="shell commands before every task")
    return parser


def read_settings(arguments: argparse.Namespace) -> BuildSettings:
    """The build that the command line asks for.

    Raises:
        ValueError: options do not fit together, or a source has no files.
    """
    if (arguments.select is None) != (arguments.encoder is None):
        raise ValueError("--select and --encoder belong together; give both or none")
    selection = None
    if arguments.select is not None:
        selection = Selection(
            encoder=arguments.encoder.resolve(),
            ratios=parse_ratios(arguments.select),
            clusters=arguments.clusters,
        )
    found = _find_text(arguments)
    filtered: tuple[str, ...] = ()
    if arguments.filters == "quality":
        filtered = tuple(arguments.filter_domains) or found.domains
    return BuildSettings(
        output=arguments.output.resolve(),
        files=found.files,
        domains=found.domains,
        tokenizer=arguments.tokenizer,
        tasks=arguments.tasks,
        filtered=filtered,
        minhash=arguments.minhash,
        across_domains=arguments.across_domains,
        evaluations=tuple(arguments.decontaminate),
        ngram=arguments.ngram,
        selection=selection,
        split=Split(fraction=arguments.validation_fraction, seed=arguments.seed),
    )


def _find_text(arguments: argparse.Namespace) -> CorpusFiles:
    """Files and domains of all corpora, in the order in which they are named."""
    corpora = [name.partition("=") for name in arguments.corpus]
    narrowed = {
        "--source": arguments.source,
        "--domains": arguments.domains,
        "--domain-field": arguments.domain_field,
        "--text-field": arguments.text_field,
        "--files": arguments.files,
    }
    if len(corpora) == 1:
        (name, _, source), *_ = corpora
        return find_files(
            name,
            source or arguments.source,
            domains=arguments.domains,
            domain_field=arguments.domain_field,
            text_field=arguments.text_field,
            files=arguments.files,
        )
    given = [option for option, value in narrowed.items() if value]
    if given:
        raise ValueError(
            f"{given[0]} is for one corpus, found {len(corpora)}; give sources as NAME=SOURCE"
        )
    found = [find_files(name, source or None) for name, _, source in corpora]
    return CorpusFiles(
        files=tuple(file for each in found for file in each.files),
        domains=tuple(domain for each in found for domain in each.domains),
    )


def main(command: list[str] | None = None) -> int:
    """Build, or submit the build; returns the exit code."""
    arguments = make_parser().parse_args(command)
    try:
        settings = read_settings(arguments)
        stages = list(make_stages(settings))
        if arguments.executor == "slurm":
            if arguments.slurm_partition is None:
                raise ValueError("--executor slurm needs --slurm-partition")
            options = SlurmOptions(
                partition=arguments.slurm_partition,
                time=arguments.slurm_time,
                cpus_per_task=arguments.slurm_cpus_per_task,
                mem_per_cpu_gb=arguments.slurm_mem_per_cpu_gb,
                qos=arguments.slurm_qos,
                setup=arguments.slurm_setup,
                workers=arguments.workers or -1,
            )
            job = submit(stages, options)
            print(f"submitted; the last job is {job}, and it writes {settings.output}/report.json")
            return 0
        workers = arguments.workers or os.cpu_count() or 1
        run_locally(stages, settings.output, workers)
    except ValueError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    print(format_report(load_report(settings.output)))
    return 0


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
