"""What a summary means, in sentences: the verdict against a baseline, and reasons for doubt."""

from collections.abc import Iterator, Mapping
from typing import Any

from .probe_length import early_sentence, is_early
from .published_findings import about_published_fit, about_published_projection
from .token_count import format_token_count
from .wording import interval, listed

Summary = Mapping[str, Any]
REPEATED_SHOWN = 3
_OBJECTIVES = {
    "mean_loss": "a weighted mean loss",
    "mean_perplexity": "mean perplexity",
    "mean_bits_per_byte": "mean bits per byte",
    "worst_loss": "the worst loss",
}
FAR = 2.0  # a target beyond this multiple of the largest probe budget is worth a warning


def verdict_sentence(comparison: Mapping[str, Any]) -> str:
    """One comparison of the AutoScale mixture with a baseline, with its numbers and its noise."""
    baseline = comparison["baseline"]
    if comparison["same_runs"]:
        return f"The AutoScale mixture is the same as {baseline}: there is nothing to compare."
    size = f"{abs(comparison['difference']):.4f} nats"
    side = "below" if comparison["difference"] < 0 else "above"
    where = f"{size} {side}" if float(size.split()[0]) else "level with"
    if comparison["low"] is None:
        return (
            f"The AutoScale mixture ends {where} {baseline}; with one seed and no measured "
            "noise between seeds this is not distinguishable from chance."
        )
    numbers = (
        f"{comparison['confidence']:.0%} interval "
        f"{interval(comparison['low'], comparison['high'])}, {_seeds(comparison)}"
    )
    if comparison["verdict"] == "not distinguishable":
        return (
            f"The AutoScale mixture and {baseline} are not distinguishable: it ends {where} "
            f"it ({numbers})."
        )
    sentence = (
        f"The AutoScale mixture is {comparison['verdict']} than {baseline}: its mean validation "
        f"loss ends {size} {side} ({numbers})."
    )
    if comparison["verdict"] == "better" and comparison["tokens_saved"] is not None:
        sentence += (
            f" It reaches the final loss of {baseline} with {comparison['tokens_saved']:.1%} fewer "
            "tokens."
        )
    return sentence


def _seeds(comparison: Mapping[str, Any]) -> str:
    count, noise = len(comparison["seeds"]), comparison["noise"]
    seeds = "1 seed" if count == 1 else f"{count} seeds"
    if noise is None:
        return seeds
    if count == 1:
        return f"{seeds}, noise {noise:.4f} taken from the {comparison['noise_source']}"
    return f"{seeds}, noise between seeds {noise:.4f}"


def warnings(summary: Summary) -> list[dict[str, str]]:
    """Reasons for doubt, most serious first, each with the part of the report it belongs to."""
    found = {
        "runs": [*_about_runs(summary), *_about_provenance(summary)],
        "comparison": _about_targets(summary),
        "fit": _about_fit(summary),
        "projection": _about_projection(summary),
        "repetition": _about_repetition(summary),
    }
    return [{"about": about, "text": text} for about, texts in found.items() for text in texts]


def _about_runs(summary: Summary) -> Iterator[str]:
    for row in summary["runs"]:
        if row["status"] == "failed":
            yield f"Run {row['label']} failed ({row['reason']})."


def _about_targets(summary: Summary) -> Iterator[str]:
    targets = summary["targets"]
    if targets is None:
        return
    noise = targets["seed_noise"]
    if noise["sd"] is None:
        yield (
            "No run was repeated under another seed, so nothing says how much of a difference is "
            "chance; give train.seeds two or more."
        )
    elif noise["source"] != "target runs":
        yield (
            "The target runs have one seed each; the noise between seeds is that of the "
            f"{noise['source']} ({noise['degrees_of_freedom'] + 1} seeds). Give train.seeds two or "
            "more for a paired comparison."
        )
    elif any(len(c["seeds"]) == 2 for c in targets["comparisons"]):
        yield (
            "Two seeds leave one degree of freedom: intervals are wide, and only a large "
            "difference is told from chance."
        )
    objective = summary["experiment"]["objective"]
    domains = summary["domains"]
    plain = {name: float(name in domains) / len(domains) for name in summary["sets"]}
    off = max(abs(objective["weights"][name] - weight) for name, weight in plain.items())
    if objective["kind"] != "mean_loss" or off > 1e-9:
        what = _OBJECTIVES[objective["kind"]]
        counted = listed([name for name, weight in objective["weights"].items() if weight])
        where = "" if summary["sets"] == domains else f" on {counted}"
        over = "" if not where else " over the training domains"
        yield (
            f"The mixture was chosen for {what}{where}; runs are compared by their plain mean loss"
            f"{over}."
        )
    decision = summary["decision"]
    for row in decision["gains"] if decision else ():
        if row["agrees"] is False:
            measured, at = row["measured"], format_token_count(decision["gain_tokens"])
            yield (
                f"The law expected a gain over {' = '.join(row['names'])} of "
                f"{interval(row['low'], row['high'])} {summary['experiment']['unit']} at {at} "
                f"tokens, the target runs measured {interval(measured['low'], measured['high'])}: "
                "they do not agree."
            )


def _about_fit(summary: Summary) -> Iterator[str]:
    fit = summary["fit"]
    if fit is None:
        return
    if summary["experiment"]["published"]:
        yield from about_published_fit(summary)
    else:
        yield from _about_joint_fit(summary)
    levels = fit.get("levels") or [None]
    if levels[-1] is not None and is_early(levels[-1]):
        where = format_token_count(levels[-1]["token_budget"])
        yield early_sentence(levels[-1], f"the reference runs at {where}")
    pairs = [
        format_token_count(budget["token_budget"])
        for budget in fit["budgets"]
        if budget["seed_noise"] is not None and budget["num_references"] == 2
    ]
    if pairs:
        yield (
            f"The noise between seeds at {listed(pairs)} rests on two runs and is itself "
            "uncertain by a factor of two or more."
        )


def _about_joint_fit(summary: Summary) -> Iterator[str]:
    fit, experiment = summary["fit"], summary["experiment"]
    for key, what in (("law", "law"), ("metric", "metric"), ("objective", "objective")):
        if fit[key] != experiment[key]:
            yield f"fit.{what} has changed since the fit was made; run `autoscale fit` again."
    yield from fit["warnings"]
    largest = fit["budgets"][-1]
    where = format_token_count(largest["token_budget"])
    if largest["seed_noise"] is None:
        yield (
            f"The reference run at {where} has one seed: nothing says how much of the law's error "
            "is chance; give probe.reference_seeds two or more."
        )
    if summary["projection"] is None:  # else the target's mixture has its own
        for text in largest["solution"]["warnings"]:
            yield f"At {where}: {text}"


def _about_projection(summary: Summary) -> Iterator[str]:
    projection, asked = summary["projection"], summary["experiment"]["projection"]
    if projection is None:
        return
    advice = projection.get("advice")
    if advice is not None:
        yield from advice["warnings"]
    target = format_token_count(projection["token_budget"])
    if advice is None and projection["reach"] > FAR:
        yield (
            f"The target of {target} tokens is {projection['reach']:.3g} times the largest probe "
            "budget: how the best mixture changes on the way was extrapolated, not measured."
        )
    elif projection["reach"] < 1:
        yield f"The target of {target} tokens is smaller than the largest probe budget."
    if projection["projection"] == "full":
        yield (
            "The full projection is the paper's. On the paper's own probe runs, predicting 1.2B "
            "from 0.3B and 0.6B, it came out further from the optimum than holding the weights of "
            "0.6B; compare with the baseline 'hold'."
        )
    who = "the experiment"
    if summary["experiment"]["published"]:
        yield from about_published_projection(projection)
    elif asked == "auto" and summary["fit"] is not None:
        asked, who = summary["fit"]["projection"], "the fit"
    if asked not in ("auto", projection["projection"]):
        yield (
            f"The mixture was projected with {projection['projection']!r}, {who} now says "
            f"{asked!r}; run `autoscale project` again."
        )


def _about_repetition(summary: Summary) -> Iterator[str]:
    """A law is asked about runs that repeat more than those it was fitted to."""
    target = next((m for m in summary["mixtures"] if m["name"] == "autoscale"), None)
    if target is None:
        return
    available, budget = summary["data"]["available_tokens"], summary["projection"]["token_budget"]
    repeated: list[tuple[float, str]] = []
    for name, weight in target["weights"].items():
        epochs = weight * budget / available[name]
        if epochs > 1.05:
            probes = [r["tokens"][name] for r in summary["runs"] if r["stage"] == "probe"]
            most = max(probes, default=0) / available[name]
            if summary["experiment"]["match_repetition"]:  # they drew from a share of it
                most *= max(1.0, budget / max(summary["experiment"]["probe_budgets"]))
            if epochs > 1.2 * most:
                text = f"{name} {epochs:.1f} times (probe runs at most {most:.1f})"
                repeated.append((epochs, text))
    if repeated:
        worst = [text for _, text in sorted(repeated, reverse=True)]
        more = f"{len(worst) - REPEATED_SHOWN} more domains"
        shown = worst if len(worst) <= REPEATED_SHOWN + 1 else [*worst[:REPEATED_SHOWN], more]
        yield f"The target run repeats {listed(shown)}; the law {_worth_of_repeated(summary)}."


def _worth_of_repeated(summary: Summary) -> str:
    rate = (summary["fit"] or {}).get("repetition_rate")
    if summary["experiment"]["match_repetition"]:
        return "was fitted to runs that repeat it less, and says nothing of more"
    if rate is None:
        return "does not model repetition and values a repeated token like a new one"
    fitted = summary["experiment"]["repetition"] == "fit"
    source = "as fitted to the probe runs" if fitted else "a number that these runs did not measure"
    return f"counts repeated tokens less, by R* = {rate:.3g} epochs, {source}"


def _about_provenance(summary: Summary) -> Iterator[str]:
    provenance = summary["provenance"]
    for key, what in (
        ("versions", "library versions"),
        ("commits", "commits"),
        ("devices", "devices"),
    ):
        if len(provenance[key]) > 1:
            yield f"The runs were made with {len(provenance[key])} different {what}."
    if any(commit and commit.endswith("+changes") for commit in provenance["commits"]):
        yield "Runs were made with uncommitted changes to the code."
