"""What became of every document: per domain, read = dropped by reason + validation + train.

<output>/report.json     counts of documents, bytes and tokens; contamination; unreadable lines
<output>/manifest.json   what `autoscale plan` reads; written last
"""

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from autoscale.records import read_json, write_json

from .contamination import EvaluationIndex
from .ledger import COUNTS, READ, TRAIN, VALIDATION, Ledger
from .reading import UNREADABLE
from .shards import BUILD_FOLDER, RECORDS, SPLITS, ShardPlan, make_manifest

REPORT_KIND = "corpus_build"
CONTAMINATION = "contamination"
OWN_TOKENIZER = re.compile("tokenizer-[0-9a-f]{12}")
Report = dict[str, Any]


class Finish(PipelineStep):
    """Writes the report and the manifest, and removes shards of earlier settings.

    Args:
        plan: of the shards.
        documents: folder of the reading stage.
        settings: what the build was asked for; part of the report.
        evaluations: evaluation sets that were looked for.
        ngram: words of an n-gram.
    """

    type = "💽 - WRITER"
    name = "report and manifest"

    def __init__(
        self,
        plan: ShardPlan,
        documents: Path,
        settings: Mapping[str, Any],
        evaluations: tuple[str, ...],
        ngram: int,
    ) -> None:
        super().__init__()
        self.plan = plan
        self.documents = documents
        self.settings = dict(settings)
        self.evaluations = evaluations
        self.ngram = ngram

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        plan = self.plan
        report = self._report()
        write_json(plan.output / "report.json", REPORT_KIND, report)
        present = tuple(report["domains"])
        make_manifest(plan, present).save(plan.output / "manifest.json")
        for folder in plan.shards.parent.iterdir():
            if folder != plan.shards and (folder / BUILD_FOLDER).is_dir():
                shutil.rmtree(folder)
        for folder in plan.output.iterdir():
            if folder != plan.tokenizer and OWN_TOKENIZER.fullmatch(folder.name):
                shutil.rmtree(folder)

    def _report(self) -> Report:
        plan = self.plan
        ledger = Ledger.load_all(self.documents / COUNTS, plan.tasks)
        ledger.merge(Ledger.load_all(plan.folder / COUNTS, plan.tasks * len(plan.domains)).counts)
        tokens = self._tokens()
        domains: dict[str, Any] = {}
        for domain in plan.domains:
            if domain not in ledger.counts:
                continue
            fates = dict(ledger.counts[domain])
            read = fates.pop(READ)
            check_sum(domain, read, fates)
            kept = {side: _count(fates.pop(side, [0, 0])) for side in SPLITS}
            for side, count in kept.items():
                count["tokens"] = tokens[domain, side]
            domains[domain] = {
                READ: _count(read),
                "dropped": {reason: _count(fate) for reason, fate in sorted(fates.items())},
                **kept,
            }
        return {
            "settings": self.settings,
            "domains": domains,
            "absent_domains": [name for name in plan.domains if name not in domains],
            "unreadable_lines": self._unreadable(),
            CONTAMINATION: self._contamination(),
        }

    def _tokens(self) -> dict[tuple[str, str], int]:
        plan = self.plan
        tokens: dict[tuple[str, str], int] = defaultdict(int)
        for rank in range(plan.tasks * len(plan.domains)):
            path = plan.folder / RECORDS / f"{rank:05d}.json"
            for side, shard in json.loads(path.read_text(encoding="utf-8")).items():
                tokens[plan.domains[rank // plan.tasks], side] += shard["tokens"]
        return tokens

    def _unreadable(self) -> dict[str, int]:
        lines: dict[str, int] = {}
        for task in range(self.plan.tasks):
            path = self.documents / UNREADABLE / f"{task:05d}.json"
            lines |= json.loads(path.read_text(encoding="utf-8"))
        return dict(sorted(lines.items()))

    def _contamination(self) -> dict[str, Any]:
        """By evaluation set: entries, those found in the training text, and documents dropped."""
        entries: dict[str, set[int]] = defaultdict(set)
        documents: dict[str, int] = defaultdict(int)
        for path in sorted((self.plan.folder / CONTAMINATION).glob("*.jsonl")):
            seen: set[tuple[str, str]] = set()
            for line in path.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                entries[row["evaluation"]].add(row["entry"])
                if (row["evaluation"], row["document"]) not in seen:
                    seen.add((row["evaluation"], row["document"]))
                    documents[row["evaluation"]] += 1
        index = EvaluationIndex(self.evaluations, self.ngram)
        return {
            name: {
                "entries": index.entries[name],
                "entries_too_short": index.too_short[name],
                "entries_found": len(entries[name]),
                "documents_dropped": documents[name],
            }
            for name in self.evaluations
        }


def check_sum(domain: str, read: list[int], fates: Mapping[str, list[int]]) -> None:
    """Refuse counts that do not add up: documents were lost, or counted twice."""
    for place, unit in enumerate(("documents", "bytes")):
        total = sum(fate[place] for fate in fates.values())
        if total != read[place]:
            raise ValueError(
                f"domain {domain!r}: {read[place]} {unit} were read, but {total} were dropped or "
                "kept; the folder work/ was changed during the build: remove it and build again"
            )


def load_report(output: Path) -> Report:
    """The report of a finished build."""
    return read_json(output / "report.json", REPORT_KIND)


def format_report(report: Report) -> str:
    """The report as a table: a row a domain, and below it what was dropped and why."""
    lines = [
        f"{'domain':<34}{'documents':>14}{'MB':>12}{'tokens':>16}",
    ]
    for name, counts in report["domains"].items():
        lines.append(_row(name, counts[READ]))
        for reason, count in counts["dropped"].items():
            lines.append(_row(f"  - {reason}", count))
        for side in (VALIDATION, TRAIN):
            lines.append(_row(f"  = {side}", counts[side]))
    for name in report["absent_domains"]:
        lines.append(f"{name:<34}{'no document':>14}")
    for name, count in report[CONTAMINATION].items():
        lines.append(
            f"{name}: {count['entries_found']} of {count['entries']} entries found, in "
            f"{count['documents_dropped']} documents ({count['entries_too_short']} entries are too "
            "short to be looked for)"
        )
    unreadable = report["unreadable_lines"]
    if unreadable:
        lines.append(
            f"{sum(unreadable.values())} lines of {len(unreadable)} files are no JSON and were "
            "passed over: unreadable_lines in report.json"
        )
    return "\n".join(lines)


def _row(name: str, count: Mapping[str, int]) -> str:
    tokens = f"{count['tokens']:,}" if "tokens" in count else ""
    return f"{name:<34}{count['documents']:>14,}{count['text_bytes'] / 1e6:>12.2f}{tokens:>16}"


def _count(fate: list[int]) -> dict[str, int]:
    return {"documents": fate[0], "text_bytes": fate[1]}
