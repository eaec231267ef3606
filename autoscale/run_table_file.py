"""Run tables as CSV files: runs read for a fit or a prediction, and predictions written.

One row a run. Columns, in any order and matched by name:

- `run`: its name;
- `weight/<domain>`, fractions of the tokens, and `tokens`, the total (without it all runs count as
  one budget); or `tokens/<domain>`, from which weights and total follow;
- optional `parameters` and `seed`;
- `loss/<validation set>`, in nats a token, or what the caller says;
- `note/<anything>` is ignored. Any other column is an error: a misspelt one would be lost silently.

Counts are numbers (`1998000000.0`, `1e9`) or as people write them (`1.2B`).
"""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from .records import write_text
from .run_table import SAME_AMOUNT, Array, Metric, RunTable
from .token_count import parse_token_count

_SINGLE = ("run", "tokens", "parameters", "seed")
_PREFIXES = ("weight/", "tokens/", "loss/", "note/")
_KNOWN = "run, weight/<domain>, tokens, tokens/<domain>, parameters, seed, loss/<set>, note/<any>"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sheet:
    """The cells of a file as text, with what error messages need to point at one of them."""

    path: Path
    header: tuple[str, ...]
    runs: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def names(self, prefix: str) -> tuple[str, ...]:
        """What follows the prefix, for the columns that start with it."""
        return tuple(c.removeprefix(prefix) for c in self.header if c.startswith(prefix))

    def column(self, name: str, parse: Callable[[str], float]) -> Array | None:
        """One column as numbers, shape (num_runs,); None where the file has no such column."""
        if name not in self.header:
            return None
        position = self.header.index(name)
        numbers = np.empty(len(self.rows))
        for p, row in enumerate(self.rows):
            try:
                numbers[p] = parse(row[position])
            except ValueError as error:
                found = f"is {row[position]!r}" if row[position] else "is empty"
                raise ValueError(
                    f"{self.path}: {name} of run {self.runs[p]!r} {found}; {error}"
                ) from error
        return numbers

    def columns(self, prefix: str, names: Sequence[str], parse: Callable[[str], float]) -> Array:
        """Several columns, shape (num_runs, len(names))."""
        found = [self.column(prefix + name, parse) for name in names]
        return np.array(found, dtype=np.float64).reshape(len(names), len(self.rows)).T


def read_run_table(
    path: Path, *, perplexity: bool = False, metric: Metric = "nats", require_losses: bool = True
) -> RunTable:
    """Read the runs of a CSV file.

    Args:
        path: the file, UTF-8.
        perplexity: the loss columns hold perplexities; their logarithms, in nats, are taken.
        metric: what the loss columns hold otherwise, for all of them.
        require_losses: whether a file without losses is an error. Where it is not, loss columns
            that are empty throughout are left out, so that a table to predict may have them.

    Raises:
        ValueError: naming file, run and column: a file that cannot be read, unknown, missing or
            repeated columns, cells that are empty or no numbers, or what `RunTable` refuses.
    """
    if perplexity and metric != "nats":
        raise ValueError(f"perplexities give nats a token, not {metric}; choose one of the two")
    sheet = _read_sheet(path)
    domains, weights, tokens = _read_mixtures(sheet)
    sets = sheet.names("loss/")
    if require_losses and not sets:
        raise ValueError(f"{path} has no loss/<validation set> column; a fit needs at least one")
    if not require_losses:
        sets = tuple(name for name in sets if _has_cells(sheet, f"loss/{name}"))
    losses = sheet.columns("loss/", sets, _log_perplexity if perplexity else _number)
    parameters = sheet.column("parameters", _count)
    seeds = sheet.column("seed", _integer)
    try:
        return RunTable(
            runs=sheet.runs,
            domains=domains,
            sets=sets,
            weights=weights,
            tokens=tokens,
            parameters=parameters,
            seeds=None if seeds is None else tuple(map(int, seeds)),
            losses=losses,
            metric=metric,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def match_domains(table: RunTable, domains: Sequence[str]) -> RunTable:
    """The table with its domains in another order, e.g. that of a fit; matched by name.

    Raises:
        ValueError: a domain is missing or unknown.
    """
    for name in table.domains:
        if name not in domains:
            near = get_close_matches(name, domains, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it knows {', '.join(domains)}"
            raise ValueError(
                f"the table has weights for domain {name!r}, which the fit does not know; {hint}"
            )
    missing = [name for name in domains if name not in table.domains]
    if missing:
        raise ValueError(
            f"the table has no weights for {', '.join(map(repr, missing))}, which the fit knows; "
            "add the column, with 0 where a run leaves the domain out"
        )
    order = [table.domains.index(name) for name in domains]
    return replace(table, domains=tuple(domains), weights=table.weights[:, order])


def write_predictions(
    path: Path,
    runs: Sequence[str],
    *,
    sets: Sequence[str],
    mean_PJ: Array,
    low_PJ: Array,
    high_PJ: Array,
) -> Path:
    """Write `run`, then for each set `loss/<set>`, `low/<set>`, `high/<set>`.

    Losses have shape (num_runs, num_sets) and are written in full: they read back as they were.
    """
    header = [f"{kind}/{name}" for name in sets for kind in ("loss", "low", "high")]
    numbers = np.stack([mean_PJ, low_PJ, high_PJ], axis=2).reshape(len(runs), len(header))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", *header])
    for name, row in zip(runs, numbers.tolist(), strict=True):
        writer.writerow([name, *map(repr, row)])
    return write_text(path, text.getvalue())


def write_run_table(
    path: Path, table: RunTable, notes: Mapping[str, Sequence[object]] | None = None
) -> Path:
    """Write runs as `read_run_table` reads them, with `note/<name>` columns that it ignores."""
    columns: dict[str, Sequence[object]] = {"run": table.runs}
    columns |= {
        f"weight/{name}": table.weights[:, k].tolist() for k, name in enumerate(table.domains)
    }
    counts = {"tokens": table.tokens, "parameters": table.parameters}
    columns |= {name: values.tolist() for name, values in counts.items() if values is not None}
    if table.seeds is not None:
        columns["seed"] = table.seeds
    columns |= {f"loss/{name}": table.losses[:, j].tolist() for j, name in enumerate(table.sets)}
    columns |= {f"note/{name}": values for name, values in (notes or {}).items()}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return write_text(path, text.getvalue())


def _read_sheet(path: Path) -> _Sheet:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [(r.line_num, row) for r in [csv.reader(file)] for row in r if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not readable as a CSV file: {error}") from error
    if len(lines) < 2:
        raise ValueError(
            f"{path} has {len(lines)} row(s); expected a header row, then one row a run"
        )
    header = tuple(cell.strip() for cell in lines[0][1])
    _check_header(path, header)
    for line, row in lines[1:]:
        if len(row) != len(header):
            raise ValueError(
                f"{path}, line {line}: {len(row)} cells under {len(header)} columns; "
                "quote cells that hold commas"
            )
    rows = tuple(tuple(cell.strip() for cell in row) for _, row in lines[1:])
    runs = tuple(row[header.index("run")] for row in rows)
    if "" in runs:
        line = lines[1 + runs.index("")][0]
        raise ValueError(f"{path}, line {line}: run is empty; expected a name of its own")
    return _Sheet(path=path, header=header, runs=runs, rows=rows)


def _check_header(path: Path, header: Sequence[str]) -> None:
    for position, name in enumerate(header, start=1):
        prefix, slash, rest = name.partition("/")
        if not name:
            raise ValueError(
                f"{path}: column {position} has no name (a pandas index? write it with "
                "index=False); name it, or remove it"
            )
        if header.index(name) != position - 1:
            raise ValueError(f"{path}: column {name!r} appears twice; remove one of them")
        if name not in _SINGLE and not (slash and rest and prefix + slash in _PREFIXES):
            raise ValueError(f"{path}: column {name!r} is not known; {_suggestion(prefix, rest)}")
    if "run" not in header:
        raise ValueError(
            f"{path} has no column 'run', the names of the runs; found {', '.join(header)}"
        )


def _suggestion(prefix: str, rest: str) -> str:
    known = [p.removesuffix("/") for p in _PREFIXES] if rest else list(_SINGLE)
    near = get_close_matches(prefix.lower(), known, n=1)
    hint = f"did you mean {'/'.join([near[0], rest]) if rest else near[0]!r}? " if near else ""
    return f"{hint}Known are {_KNOWN}"


def _read_mixtures(sheet: _Sheet) -> tuple[tuple[str, ...], Array, Array | None]:
    """Domains, their weights (num_runs, num_domains) and total tokens (num_runs,)."""
    by_weight, by_tokens = sheet.names("weight/"), sheet.names("tokens/")
    total = sheet.column("tokens", _count)
    if bool(by_weight) == bool(by_tokens):
        found = "both" if by_weight else "neither"
        raise ValueError(
            f"{sheet.path} has {found} of weight/<domain> and tokens/<domain> columns; give one "
            "kind: weights with a column tokens for the total, or tokens of every domain"
        )
    if by_weight:
        return by_weight, sheet.columns("weight/", by_weight, _number), total
    tokens = sheet.columns("tokens/", by_tokens, _count)
    sums = tokens.sum(axis=1)
    for p in np.flatnonzero(~((tokens >= 0).all(axis=1) & (sums > 0)))[:1]:
        raise ValueError(
            f"{sheet.path}: tokens/<domain> of run {sheet.runs[p]!r} are "
            f"{', '.join(f'{count:g}' for count in tokens[p])}; expected none below 0, not all 0"
        )
    if total is not None:
        for p in np.flatnonzero(~(np.abs(total - sums) <= SAME_AMOUNT * sums))[:1]:
            raise ValueError(
                f"{sheet.path}: tokens of run {sheet.runs[p]!r} is {total[p]:g}, but its "
                f"tokens/<domain> sum to {sums[p]:g}; correct one, or leave out tokens"
            )
    return by_tokens, tokens / sums[:, None], sums


def _has_cells(sheet: _Sheet, name: str) -> bool:
    position = sheet.header.index(name)
    return any(row[position] for row in sheet.rows)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("expected a number") from None


def _log_perplexity(text: str) -> float:
    value = _number(text)
    if not value > 1:
        raise ValueError("expected a perplexity, above 1 (is the table in nats?)")
    return float(np.log(value))


def _count(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return float(parse_token_count(text))
    except ValueError:
        raise ValueError("expected a number such as 1200000000, 1.2e9 or 1.2B") from None


def _integer(text: str) -> float:
    value = _number(text)
    if not value.is_integer():
        raise ValueError("expected a whole number")
    return value
