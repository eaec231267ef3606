"""What a summary means, in sentences: the verdict against a baseline, and reasons for doubt."""

from collections.abc import Iterator, Mapping
from typing import Any

from .token_count import format_token_count

Summary = Mapping[str, Any]
REPEATED_SHOWN = 3
FAR = 2.0  # a target beyond this multiple of the largest probe budget is worth a warning


def signed(value: float, digits: int = 4) -> str:
    """A difference with its sign, and a minus that is as wide as the plus; nothing is plain 0."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}") if float(text) else f"{0:.{digits}f}"


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
    interval = (
        f"{comparison['confidence']:.0%} interval {signed(comparison['low'])} to "
        f"{signed(comparison['high'])}, {_seeds(comparison)}"
    )
    if comparison["verdict"] == "not distinguishable":
        return (
            f"The AutoScale mixture and {baseline} are not distinguishable: it ends {where} "
            f"it ({interval})."
        )
    sentence = (
        f"The AutoScale mixture is {comparison['verdict']} than {baseline}: its mean validation "
        f"loss ends {size} {side} ({interval})."
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
    equal = len({round(weight, 12) for weight in objective["weights"].values()}) == 1
    if objective["kind"] != "mean_loss" or not equal:
        what = (
            "mean perplexity" if objective["kind"] == "mean_perplexity" else "a weighted mean loss"
        )
        yield f"The mixture was chosen for {what}; runs are compared by their plain mean loss."


def _about_fit(summary: Summary) -> Iterator[str]:
    if summary["fit"] is None:
        return
    laws = [(b, law) for b in summary["fit"]["budgets"] for law in b["laws"]]
    tight = [law for _, law in laws if law["degrees_of_freedom"] == 0]
    if tight:
        points = tight[0]["num_points"]
        yield (
            f"{_number(points)} points, {_number(points).lower()} parameters: no degree of freedom "
            f"is left in {len(tight)} of {len(laws)} laws. Their residuals say nothing about their "
            "error; another factor in probe.factors would."
        )
    for budget in summary["fit"]["budgets"]:
        yield from _about_effects(budget)
    pairs = [
        format_token_count(budget["token_budget"])
        for budget in summary["fit"]["budgets"]
        if budget["seed_noise"] is not None and budget["num_references"] == 2
    ]
    if pairs:
        yield (
            f"The noise between seeds at {_listed(pairs)} rests on two runs and is itself "
            "uncertain by a factor of two or more."
        )
    for budget, law in laws:
        if law["status"] != "converged":
            where = format_token_count(budget["token_budget"])
            message = law["message"] or f"the law of domain {law['domain']!r}: {law['status']}"
            yield f"At {where}: {message}."
    for budget in summary["fit"]["budgets"]:
        solution, where = budget["solution"], format_token_count(budget["token_budget"])
        for key, word in (("at_lower", "lower"), ("at_upper", "upper")):
            if solution[key]:
                yield (
                    f"At {where} the optimal weight of {_listed(solution[key])} rests on its "
                    f"{word} bound: the bound chose it, not the fit."
                )


def _about_effects(budget: Mapping[str, Any]) -> Iterator[str]:
    where = format_token_count(budget["token_budget"])
    if budget["seed_noise"] is None:
        yield (
            f"The reference run at {where} has one seed, so the effects of its probe runs stand "
            "beside no noise; give probe.reference_seeds two or more."
        )
        return
    hidden = [effect for effect in budget["effects"] if not effect["distinguishable"]]
    if hidden:
        yield (
            f"At {where} {len(hidden)} of {len(budget['effects'])} probe effects are not "
            "distinguishable from the noise between seeds (within two standard deviations of a "
            f"difference, {2 * budget['difference_noise']:.4f}); the optimum there is uncertain."
        )


def _about_projection(summary: Summary) -> Iterator[str]:
    projection = summary["projection"]
    if projection is None:
        return
    target = format_token_count(projection["token_budget"])
    if projection["reach"] > FAR:
        yield (
            f"The target of {target} tokens is {projection['reach']:.3g} times the largest probe "
            "budget: how the best mixture changes on the way was extrapolated, not measured."
        )
    elif projection["reach"] < 1:
        yield (f"The target of {target} tokens is smaller than the largest probe budget.")
    if projection["projection"] == "full":
        yield (
            "The full projection is the paper's. On the paper's own probe runs, predicting 1.2B "
            "from 0.3B and 0.6B, it came out further from the optimum than holding the weights of "
            "0.6B; compare with the baseline 'hold'."
        )
    if projection["change_l1"] > 1e-9:
        yield (
            f"Bounds moved the projected weights by {projection['change_l1']:.3f} in all and hold "
            f"{_listed(projection['bounded'])}."
        )
    again = projection["kinds"].get(projection["projection"])
    if again and any(abs(again["weights"][n] - w) > 1e-6 for n, w in projection["weights"].items()):
        yield (
            "The mixture does not follow from the fit as it is now: the fit is newer, or bounds "
            "changed. Run `autoscale project` again."
        )
    if projection["projection"] != summary["experiment"]["projection"]:
        yield (
            f"The mixture was projected with {projection['projection']!r}, the experiment now says "
            f"{summary['experiment']['projection']!r}; run `autoscale project` again."
        )


def _about_repetition(summary: Summary) -> Iterator[str]:
    """A law that knows no repetition is asked about runs that repeat."""
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
            if epochs > 1.2 * most:
                text = f"{name} {epochs:.1f} times (probe runs at most {most:.1f})"
                repeated.append((epochs, text))
    if repeated:
        worst = [text for _, text in sorted(repeated, reverse=True)]
        more = f"{len(worst) - REPEATED_SHOWN} more domains"
        shown = worst if len(worst) <= REPEATED_SHOWN + 1 else [*worst[:REPEATED_SHOWN], more]
        yield (
            f"The target run repeats {_listed(shown)}; the law does not model repetition and "
            "values a repeated token like a new one."
        )


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


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _number(count: int) -> str:
    words = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
    return words[count] if count < len(words) else str(count)
