"""The files of the published study: planned at full size, and run end to end at a tiny one."""

import json
import subprocess
import sys

import pytest
import zstandard
from transformers import AutoModelForMaskedLM, AutoTokenizer

from autoscale.config import load_config
from tests.conftest import ROOT, environment

# Each with the model of a tiny run and two of the domains.
STUDIES = {
    "gpt2_large_redpajama": ("gpt2-nano", ["books", "arxiv"]),
    "bert_base": ("bert-nano", ["books", "openwebtext"]),
}
PIECE = 1500  # characters


@pytest.fixture(scope="module", params=STUDIES)
def study(request, tiny_text, tmp_path_factory):
    """Runs a command on a study's file, with its data made of the tiny text.

    Gives the name, the folder of the outputs, and a function that takes a command and overrides.
    """
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    variables = environment() | {"AUTOSCALE_CORPUS": str(folder / "corpus")}
    path = ROOT / f"launch/experiments/{name}.toml"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOSCALE_CORPUS", variables["AUTOSCALE_CORPUS"])
        domains = load_config(path).prepare.domains
    write_corpus(tiny_text, domains)
    paths = [
        f"output_dir={folder}/out", f"prepare.output={folder}/shards", "prepare.num_workers=1",
        "prepare.tokenizer={vocab_size=320, sample_bytes=60_000}",
    ]  # fmt: skip

    def autoscale(command, *overrides):
        options = [part for each in (*paths, *overrides) for part in ("--set", each)]
        done = subprocess.run(
            [sys.executable, "-m", "autoscale", command, str(path), *options],
            capture_output=True, text=True, timeout=300, env=variables, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    autoscale("prepare")
    return name, folder / "out", autoscale


def write_corpus(tiny_text, domains):
    """The files that the domains name, each with pieces of its own."""
    kinds = ("python_code", "english_docs", "cpp_headers")
    for index, domain in enumerate(domains):
        texts = [
            json.loads(line)["text"]
            for line in (tiny_text / f"{kinds[index % 3]}.jsonl").read_text().splitlines()
        ]
        cut = [text[i : i + PIECE] for text in texts for i in range(0, len(text), PIECE)]
        own = cut[index // 3 :: 3]
        for location, pieces in zip(
            (*domain.train, *domain.validation),
            (own[5:], own[:5]) if domain.train else (own,),
            strict=True,
        ):
            (ROOT / location).parent.mkdir(exist_ok=True)
            lines = "".join(json.dumps({"text": piece}) + "\n" for piece in pieces)
            (ROOT / location).write_bytes(zstandard.compress(lines.encode()))


def test_the_whole_study_is_planned(study):
    """Counts of runs and tokens; the size of the model with the vocabulary of its own tokenizer."""
    name, output, autoscale = study
    size = {"gpt2_large_redpajama": (7, 50_257, 774_030_080), "bert_base": (5, 30_522, 109_347_642)}
    num_domains, vocab_size, parameters = size[name]
    autoscale("plan", "data.max_epochs=1e6", f"model.overrides={{vocab_size={vocab_size}}}")
    plan = json.loads((output / "plan.json").read_text())
    assert plan["model"]["parameters"] == parameters
    probes = [run for run in plan["runs"] if run["stage"] == "probe"]
    assert len(probes) == 3 * (2 * num_domains + 2)
    # A budget: twice the reference, every domain with 2/K more of it and with 2/(3K) less.
    expected = sum(
        budget * (2 + num_domains * (2 + 2 / num_domains - 2 / 3 / num_domains))
        for budget in (0.3e9, 0.6e9, 1.2e9)
    )
    assert plan["totals"]["probe"]["tokens"] == pytest.approx(expected, rel=1e-3)
    targets = [run for run in plan["runs"] if run["stage"] == "train"]
    assert [run["tokens"] for run in targets] == pytest.approx([3e9] * len(targets), rel=1e-4)


def test_a_small_version_runs_to_the_report(study):
    name, output, autoscale = study
    model, domains = STUDIES[name]
    autoscale(
        "run", f"model.name={model}", f"data.domains={domains}", "data.sequence_length=32",
        "trainer.global_batch_tokens=256", "trainer.precision=fp32", "trainer.lr=1e-2",
        "evaluation.sequences_per_domain=16", "evaluation.points=2", "probe.budgets=['4K','8K']",
        "probe.reference_seeds=1", "train.budget=16K", "train.baselines=['uniform']",
    )  # fmt: skip
    assert (output / "report.html").is_file()
    mixture = json.loads((output / "mixture-16K.json").read_text())
    assert set(mixture["weights"]) == set(domains)
    results = list(output.glob("runs/*/result.json"))
    assert len(results) == 2 * 5 + 2
    further = {"pubmed", "news", "github"} if name == "bert_base" else set()
    for path in results:
        measured = json.loads(path.read_text())["final_losses"]
        assert set(measured) == {*domains, *further}

    if name == "bert_base":
        check_export(next(output.glob("runs/train-*-autoscale-*/model")))


def check_export(folder):
    """The masked model loads with the mask token that it was trained with, behind 320 others."""
    model, tokenizer = (
        kind.from_pretrained(folder) for kind in (AutoModelForMaskedLM, AutoTokenizer)
    )
    assert (model.config.vocab_size, tokenizer.mask_token_id) == (321, 320)
    inputs = tokenizer(f"def f({tokenizer.mask_token}):", return_tensors="pt")
    logits = model(**inputs).logits[inputs.input_ids == tokenizer.mask_token_id]
    assert logits.shape == (1, 321)
    assert logits.argmax() < 320  # it was trained
