"""A benchmark with real training: every kind of method, and nothing trained twice."""

import json
import shutil

import pytest

pytestmark = pytest.mark.slow
BENCH = """
[bench]
methods = ["natural", "doremi", "ado", "joint"]
probe_tokens = "4K"
total_probe_tokens = "24K"
uniform_budgets = ["4K", "24K"]
records = "kept.jsonl.gz"

[[bench.objectives]]
name = "mean_loss"

[[bench.objectives]]
name = "headers"
weights = { cpp_headers = 1 }
"""


def finish_times(tiny):
    return {name: result["finished_at"] for name, result in tiny.results().items()}


def test_methods_are_trained_compared_and_kept(tiny):
    tiny.path.write_text(tiny.path.read_text() + BENCH)
    done = tiny.autoscale("bench", "--set", "fit.draws=2")
    assert "bench.html" in done.stdout
    results = tiny.results()
    content = json.loads((tiny.output / "bench.json").read_text())
    assert [section["name"] for section in content["objectives"]] == ["mean_loss", "headers"]
    for section in content["objectives"]:
        rows = {row["method"]: row for row in section["rows"]}
        assert rows.keys() == {"uniform", "natural", "doremi", "ado", "joint"}
        for row in rows.values():
            assert len(row["finals"]) == 2 and row["standing"] is not None, row
            assert sum(row["weights"].values()) == pytest.approx(1)
        assert rows["ado"]["probe_tokens"] == rows["natural"]["probe_tokens"] == 0
        assert 20_000 < rows["doremi"]["probe_tokens"] <= 24_000
        assert 20_000 < rows["joint"]["probe_tokens"] <= 24_000
    # What does not depend on the objective was trained once.
    for method in ("natural", "doremi", "ado"):
        own = [name for name in results if f"-{method}-" in name and "seed" in name]
        assert len(own) == 2, own

    before = finish_times(tiny)
    shutil.rmtree(tiny.output)
    again = tiny.autoscale("bench", "--set", "fit.draws=2")
    assert finish_times(tiny) == before  # all of them from the file that keeps them
    assert again.stdout.count("not distinguishable") == done.stdout.count("not distinguishable")
    assert json.loads((tiny.output / "bench.json").read_text())["objectives"] == json.loads(
        json.dumps(content["objectives"])
    )
