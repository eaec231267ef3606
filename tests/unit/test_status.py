import io
import json
from datetime import datetime

import pytest
from rich.console import Console

from autoscale.status import StatusReader, status
from autoscale.status_table import RUNS_SHOWN, status_table, watch
from tests.unit.fake_experiment import FOUR, SEVEN, FakeExperiment
from tests.unit.runs_in_progress import claim, claim_from_elsewhere, log_steps, save_at


def shown(renderable, width: int = 100) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(renderable)
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= width
    return text


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def fake(tmp_path):
    return FakeExperiment(tmp_path)


@pytest.fixture
def claims():
    """Claims of this process, released at the end."""
    held = []
    yield held
    for each in held:
        each.release()


def test_every_state_is_seen_and_counted(fake, claims):
    experiment = fake.experiment
    specs = [planned.spec for planned in experiment.probes()]
    fake.probe(only=2)
    fake.fail(specs[2])
    save_at(log_steps(experiment, specs[3], 40), 30)
    claims.append(claim(log_steps(experiment, specs[4], 20)))
    found = status(fake.config)
    json.dumps(found, allow_nan=False)
    rows = {row["label"]: row for row in found["runs"]}
    states = [rows[spec.label]["state"] for spec in specs[:6]]
    assert states == ["finished", "finished", "failed", "interrupted", "running", "waiting"]
    assert rows[specs[2].label]["reason"] == "diverged: loss is nan at step 12"
    interrupted = rows[specs[3].label]
    assert (interrupted["saved_step"], interrupted["tokens"]) == (30, 40 * 1024)
    running = rows[specs[4].label]
    assert running["seconds_left"] == pytest.approx((specs[4].total_tokens - 20 * 1024) / 10_000)
    assert running["owner"]["is_here"] and running["owner"]["silent_seconds"] is None
    probe, train = found["stages"]
    assert probe["runs"] == 2 * (2 * len(FOUR) + 3) and train["runs"] == 12
    assert probe["waiting"] == probe["runs"] - 5
    assert probe["tokens"] == sum(row["tokens"] for row in rows.values())
    assert found["campaign"]["tokens"] == probe["tokens"]
    assert found["other_runs"] == 0 and not found["done"]


def test_the_end_is_known_while_runs_have_a_rate(fake, claims):
    """Stages run after each other; a stage takes at least as long as its slowest run."""
    experiment = fake.experiment
    specs = [planned.spec for planned in experiment.probes()]
    assert status(fake.config)["campaign"]["seconds_left"] is None
    claims.append(claim(log_steps(experiment, specs[0], 20, speed=10_000)))
    claims.append(claim(log_steps(experiment, specs[1], 40, speed=30_000)))
    found = status(fake.config)
    campaign = found["campaign"]
    assert campaign["tokens_per_second"] == 40_000
    assert campaign["seconds_left"] == pytest.approx(campaign["tokens_left"] / 40_000)
    end = datetime.fromisoformat(campaign["estimated_end"])
    assert abs((end - datetime.now().astimezone()).total_seconds()) <= campaign["seconds_left"] + 60
    for spec in specs[2:]:
        fake.finish(experiment, spec)
    probe, train = status(fake.config)["stages"]
    slowest = (specs[0].total_tokens - 20 * 1024) / 10_000
    assert probe["seconds_left"] == pytest.approx(slowest)
    assert train["seconds_left"] == pytest.approx(train["total_tokens"] / 40_000)


def test_signs_of_life_are_timed_by_the_clock_of_who_looks(fake):
    experiment = fake.experiment
    spec = experiment.probes()[0].spec
    folder = log_steps(experiment, spec, 20)
    now = [100.0]
    reader = StatusReader(fake.config, clock=lambda: now[0])

    def owner():
        return reader.read()["runs"][0]["owner"]

    claim_from_elsewhere(folder)
    found = reader.read()
    expected = {"host": "node7", "pid": 4711, "is_here": False, "silent_seconds": None}
    assert found["runs"][0]["owner"] == expected
    assert "last sign of life unknown" in shown(status_table(found))
    now[0] += 65
    assert owner()["silent_seconds"] == 65
    assert "silent for 1 min 05 s" in flat(shown(status_table(reader.read())))
    claim_from_elsewhere(folder, beats=1)
    assert owner()["silent_seconds"] == 0
    text = flat(shown(status_table(reader.read())))
    assert "node7:4711" in text and "silent" not in text


def test_the_targets_are_known_when_the_mixture_is(fake):
    reader = StatusReader(fake.config)
    fake.probe()
    before = [row for row in reader.read()["runs"] if row["stage"] == "train"]
    fake.fit_and_project()
    fake.train(only=3)
    found = reader.read()
    after = [row for row in found["runs"] if row["stage"] == "train"]
    assert [row["label"] for row in before] == [row["label"] for row in after]
    assert sum(row["run_id"] is None for row in before) == 6
    assert sum(row["run_id"] is None for row in after) == 0
    assert [row["state"] for row in after].count("finished") == 3
    fake.train()
    assert reader.read()["done"]
    assert "Nothing is left to train." in shown(status_table(reader.read()))


def test_a_mixture_of_other_domains_is_a_problem(fake):
    fake.probe()
    fake.fit_and_project()
    fake.train(only=1)
    path = fake.folder / "out" / "mixture-640K.json"
    content = json.loads(path.read_text())
    content["weights"] = {"x": 1.0}
    path.write_text(json.dumps(content))
    found = status(fake.config)
    assert "mixture-640K.json is no use any more" in found["problems"][0]
    assert found["other_runs"] == 1
    text = flat(shown(status_table(found)))
    assert "is no use any more" in text and "1 runs there are no part" in text


def test_the_table_fits_and_explains(tmp_path, claims):
    tables = {"limits": {"max_gpu_hours": 2, "max_tokens": "40M"}, "data": {"max_epochs": 20}}
    fake = FakeExperiment(tmp_path, SEVEN, tables=tables)
    experiment = fake.experiment
    specs = [planned.spec for planned in experiment.probes()]
    fake.probe(only=5)
    fake.fail(specs[5])
    log_steps(experiment, specs[6], 40)
    claims.append(claim(log_steps(experiment, specs[7], 50, speed=12_345)))
    claim_from_elsewhere(log_steps(experiment, specs[8], 60))
    text = shown(status_table(status(fake.config)))
    counts = next(line for line in text.splitlines() if line.startswith("probe ")).split()
    assert counts[1:6] == ["5", "2", "1", "1", "25"]
    row = next(line for line in text.splitlines() if line.startswith(specs[7].label))
    assert "51.2K/" in row and "50/" in row and "12.3K" in row and "4.500" in row
    one_line = flat(text)
    assert "diverged: loss is nan at step 12" in one_line
    assert "nothing saved: it will start anew" in one_line
    assert "22.3K tokens/s now" in one_line and "at this rate: until" in one_line
    assert "of 2 device hours" in one_line and "of 40M tokens" in one_line
    assert "Not yet: plan, fit, mixture, report." in one_line
    assert "\N{HORIZONTAL ELLIPSIS}" not in text


def test_a_long_list_is_cut_and_says_so(tmp_path):
    fake = FakeExperiment(tmp_path, SEVEN, tables={"data": {"max_epochs": 20}})
    experiment = fake.experiment
    planned = experiment.probes()
    for probe in planned:
        experiment.store.start(probe.spec)
    text = shown(status_table(status(fake.config)))
    assert text.count("interrupted ") >= RUNS_SHOWN
    assert f"and {len(planned) - RUNS_SHOWN} more" in text


def test_watch_looks_until_all_is_done_in_blocks_where_there_is_no_terminal(fake):
    fake.probe()
    fake.fit_and_project()
    reader, stream = StatusReader(fake.config), io.StringIO()
    looks = []

    class TrainsMeanwhile(StatusReader):
        def read(self):
            if looks:
                fake.train()
            looks.append(1)
            return reader.read()

    watch(TrainsMeanwhile(fake.config), Console(file=stream, width=100), 0.01)
    text = stream.getvalue()
    assert len(looks) == 2 and text.count("stage finished running") == 2
    assert "\x1b" not in text
    assert text.count("fake, 20") == 2  # each block with its date


def test_watch_ends_when_the_user_has_seen_enough(fake):
    stream = io.StringIO()

    class Interrupted(StatusReader):
        def read(self):
            raise KeyboardInterrupt

    for terminal in (True, False):
        console = Console(file=stream, width=100, force_terminal=terminal)
        watch(Interrupted(fake.config), console, 0.01)  # returns


def test_watch_redraws_on_a_terminal(fake):
    fake.run()
    stream = io.StringIO()
    watch(StatusReader(fake.config), Console(file=stream, width=100, force_terminal=True), 0.01)
    assert "Nothing is left to train." in stream.getvalue()
