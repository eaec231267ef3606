import csv
import time

import numpy as np
import pytest

from autoscale.run_table_file import match_domains, read_run_table, write_predictions

SMALL = """\
run,weight/web,weight/code,tokens,parameters,seed,loss/web,loss/books,note/cluster
r1,0.5,0.5,1.2B,124M,0,3.0,4.0,old
r2,0.25,0.75,1998000000.0,1.24e8,1,3.2,4.2,
"""
COUNTED = """\
run,tokens/web,tokens/code,loss/web
r1,300,100,3.0
r2,1K,0,3.2
"""


def read(tmp_path, text, **options):
    path = tmp_path / "runs.csv"
    path.write_text(text, encoding="utf-8")
    return read_run_table(path, **options)


def test_weights_and_totals(tmp_path):
    table = read(tmp_path, SMALL)
    assert table.runs == ("r1", "r2") and table.seeds == (0, 1)
    assert table.domains == ("web", "code") and table.sets == ("web", "books")
    assert table.weights.tolist() == [[0.5, 0.5], [0.25, 0.75]]
    assert table.tokens.tolist() == [1.2e9, 1998e6]
    assert table.parameters.tolist() == [124e6, 124e6]
    assert table.losses.tolist() == [[3.0, 4.0], [3.2, 4.2]]
    assert table.metric == "nats"


def test_tokens_of_every_domain_give_weights_and_totals(tmp_path):
    table = read(tmp_path, COUNTED)
    assert table.weights.tolist() == [[0.75, 0.25], [1.0, 0.0]]
    assert table.tokens.tolist() == [400, 1000]
    assert table.parameters is None and table.seeds is None


def test_a_total_beside_tokens_by_domain_may_be_rounded(tmp_path):
    text = "run,tokens/a,tokens/b,tokens,loss/a\nr1,1999000000,1000000,2.0B,3\n"
    assert read(tmp_path, text).tokens.tolist() == [2e9]
    with pytest.raises(ValueError, match=r"'r1' is 3e\+09, but its tokens/<domain> sum to 2e\+09"):
        read(tmp_path, text.replace("2.0B", "3B"))


def test_without_tokens_there_is_one_budget(tmp_path):
    assert read(tmp_path, "run,weight/a,weight/b,loss/a\nr,0.5,0.5,3\n").tokens is None


def test_perplexities_become_nats(tmp_path):
    text = "run,weight/a,weight/b,loss/a\nr,0.5,0.5,20.0855369\n"
    assert read(tmp_path, text, perplexity=True).losses == pytest.approx(3)
    with pytest.raises(ValueError, match=r"loss/a of run 'r' is '0.8'; .*is the table in nats"):
        read(tmp_path, text.replace("20.0855369", "0.8"), perplexity=True)
    with pytest.raises(ValueError, match="perplexities give nats a token, not bits_per_byte"):
        read(tmp_path, text, perplexity=True, metric="bits_per_byte")


def test_bits_per_byte_are_kept_as_such(tmp_path):
    table = read(tmp_path, COUNTED, metric="bits_per_byte")
    assert table.metric == "bits_per_byte" and table.losses.tolist() == [[3.0], [3.2]]


def test_spreadsheet_leftovers_are_read_past(tmp_path):
    text = "\ufeff" + SMALL.replace(",", " , ") + ",,,,,,,,\n\n"
    assert read(tmp_path, text).tokens.tolist() == [1.2e9, 1998e6]


def test_a_table_to_predict_needs_no_losses(tmp_path):
    table = read(tmp_path, "run,weight/a,weight/b\nr,0.5,0.5\n", require_losses=False)
    assert table.sets == () and table.losses.shape == (1, 0)
    text = "run,weight/a,weight/b,loss/a,loss/b\nr,0.5,0.5,,2.5\n"
    table = read(tmp_path, text, require_losses=False)
    assert table.sets == ("b",) and table.losses.tolist() == [[2.5]]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("run,", "name,", "column 'name' is not known; .*Known are run, weight/<domain>"),
        ("run,", "note/run,", "has no column 'run', the names of the runs; found note/run"),
        ("weight/web", "weights/web", "'weights/web' is not known; did you mean 'weight/web'"),
        ("loss/books", "loss/", "column 'loss/' is not known; .*Known are run"),
        ("seed", "sede", "'sede' is not known; did you mean 'seed'"),
        ("note/cluster", "", "column 9 has no name"),
        ("loss/books", "loss/web", "column 'loss/web' appears twice"),
        ("r2,", ",", "line 3: run is empty"),
        ("r2,", "r1,", "runs.csv: run 'r1' is named twice"),
        ("old\n", "old,new\n", "line 2: 10 cells under 9 columns"),
        ("4.2", "", "loss/books of run 'r2' is empty; expected a number"),
        ("4.2", "n/a", "loss/books of run 'r2' is 'n/a'; expected a number"),
        ("4.2", "nan", "runs.csv: run 'r2' has loss/books nan"),
        ("0.25,0.75", "0.25,0.85", "runs.csv: weights of run 'r2' sum to 1.1"),
        ("124M", "124X", "parameters of run 'r1' is '124X'; expected .* 1.2B"),
        ("1.2B", "", "tokens of run 'r1' is empty; expected .* 1.2B"),
        ("1.24e8,1,", "1.24e8,1.5,", "seed of run 'r2' is '1.5'; expected a whole number"),
        ("weight/", "note/", "neither of weight/<domain> and tokens/<domain>"),
        ("note/cluster", "tokens/web", "both of weight/<domain> and tokens/<domain>"),
        ("loss/", "note/loss-", "has no loss/<validation set> column"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, old, new, message):
    assert old in SMALL
    with pytest.raises(ValueError, match=message):
        read(tmp_path, SMALL.replace(old, new))


@pytest.mark.parametrize("counts", ["-1,5", "0,0", "nan,1"])
def test_wrong_token_counts_are_named(tmp_path, counts):
    with pytest.raises(ValueError, match=r"tokens/<domain> of run 'r1' are .* none below 0"):
        read(tmp_path, COUNTED.replace("300,100", counts))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not readable as a CSV file"),
        (b"", "has 0 row.s.; expected a header row"),
        (b"run,weight/a,weight/b,loss/a\n", "has 1 row.s.; expected a header row"),
        (b"run,weight/a\xff\n", "is not readable as a CSV file"),
    ],
)
def test_files_that_are_no_tables(tmp_path, content, message):
    path = tmp_path / "runs.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_run_table(path)


def test_domains_are_matched_by_name(tmp_path):
    table = match_domains(read(tmp_path, SMALL), ("code", "web"))
    assert table.domains == ("code", "web")
    assert table.weights.tolist() == [[0.5, 0.5], [0.75, 0.25]]


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        (("web", "codes"), "domain 'code', which the fit does not know; did you mean 'codes'"),
        (("web", "x"), "domain 'code', which the fit does not know; it knows web, x"),
        (("web", "code", "arxiv"), "no weights for 'arxiv', which the fit knows; add the column"),
    ],
)
def test_other_domains_are_refused(tmp_path, domains, message):
    with pytest.raises(ValueError, match=message):
        match_domains(read(tmp_path, SMALL), domains)


def test_predictions_read_back_as_they_were(tmp_path):
    rng = np.random.default_rng(0)
    mean = rng.uniform(2, 3, (2, 2))
    path = write_predictions(
        tmp_path / "predicted.csv",
        ("r1", "r,2"),
        sets=("web", "books"),
        mean_PJ=mean,
        low_PJ=mean - 0.1,
        high_PJ=mean + 0.1,
    )
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == [
        "run", "loss/web", "low/web", "high/web", "loss/books", "low/books", "high/books"
    ]  # fmt: skip
    assert [row[0] for row in rows] == ["r1", "r,2"]
    numbers = np.array([row[1:] for row in rows], dtype=float)
    assert np.array_equal(numbers[:, ::3], mean)
    assert np.array_equal(numbers[:, 1::3], mean - 0.1)
    assert np.array_equal(numbers[:, 2::3], mean + 0.1)


def test_large_tables_are_read_in_about_a_second(tmp_path):
    rng = np.random.default_rng(0)
    numbers = np.hstack([rng.dirichlet(np.ones(20), 5000), rng.uniform(2, 3, (5000, 20))])
    header = [f"weight/d{k}" for k in range(20)] + [f"loss/d{k}" for k in range(20)]
    lines = [",".join(["run", *header])]
    lines += [",".join([f"r{p}", *map(repr, row)]) for p, row in enumerate(numbers.tolist())]
    start = time.process_time()
    table = read(tmp_path, "\n".join(lines))
    assert time.process_time() - start < 2
    assert table.num_runs == 5000
    assert np.array_equal(table.losses, numbers[:, 20:])
