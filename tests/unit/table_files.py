"""Run tables as CSV files, and the command line on them, for the tests of the table commands."""

import csv
import os
import sys

import numpy as np

from autoscale import cli
from autoscale.records import read_json


def write_table(path, table, *, by_domain=False, losses=True, order=None, **columns):
    """A run table as a file: with `tokens/<domain>` columns, without losses, columns reordered."""
    order = order or table.domains
    index = [table.domains.index(name) for name in order]
    found = {"run": table.runs}
    if by_domain:
        tokens = table.weights * table.tokens[:, None]
        found |= {f"tokens/{name}": tokens[:, i] for name, i in zip(order, index, strict=True)}
    else:
        found |= {
            f"weight/{name}": table.weights[:, i] for name, i in zip(order, index, strict=True)
        }
        if table.tokens is not None:
            found["tokens"] = table.tokens
    if table.parameters is not None:
        found["parameters"] = table.parameters
    if table.seeds is not None:
        found["seed"] = table.seeds
    if losses:
        found |= {f"loss/{name}": table.losses[:, j] for j, name in enumerate(table.sets)}
    found |= columns
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(found)
        for row in zip(*found.values(), strict=True):
            writer.writerow([cell if isinstance(cell, str) else repr(float(cell)) for cell in row])
    return path


def read_predictions(path):
    """Names, header and numbers of a file that `predict` wrote."""
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    return [row[0] for row in rows], header, np.array([row[1:] for row in rows], dtype=float)


def read_mixture(path):
    """A mixture file with its weights as an array too."""
    record = read_json(path, "mixture")
    return record, np.array(list(record["weights"].values()))


class CommandLine:
    """`autoscale` in this process, through its entry point: status, output and errors."""

    def __init__(self, monkeypatch, capsys):
        self.capsys = capsys
        self.monkeypatch = monkeypatch
        monkeypatch.setattr(os, "_exit", _leave)

    def __call__(self, *arguments):
        self.monkeypatch.setattr(sys, "argv", ["autoscale", *map(str, arguments)])
        self.capsys.readouterr()
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = end.code or 0
        output, errors = self.capsys.readouterr()
        return status, output, errors

    def succeed(self, *arguments):
        """The output of a command that must end well."""
        status, output, errors = self(*arguments)
        assert status == 0, errors
        return output

    def refuse(self, *arguments):
        """The one message of a command that must end as a user's mistake."""
        status, output, errors = self(*arguments)
        assert status == 2, output
        assert "Traceback" not in errors
        lines = errors.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), errors
        return lines[0].removeprefix("error: ")


def _leave(status):
    raise SystemExit(status)
