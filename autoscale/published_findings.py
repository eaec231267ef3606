"""Reasons to doubt a fit and a projection with the published law (law `autoscale`)."""

from collections.abc import Iterator, Mapping
from typing import Any

from .token_count import format_token_count
from .wording import listed, number_word

Summary = Mapping[str, Any]


def about_published_fit(summary: Summary) -> Iterator[str]:
    """Laws without freedom or on a bound, effects within the noise, optima on a bound."""
    laws = [(b, law) for b in summary["fit"]["budgets"] for law in b["laws"]]
    tight = [law for _, law in laws if law["degrees_of_freedom"] == 0]
    if tight:
        points = tight[0]["num_points"]
        yield (
            f"{number_word(points)} points, {number_word(points).lower()} parameters: no degree of "
            f"freedom is left in {len(tight)} of {len(laws)} laws. Their residuals say nothing "
            "about their error; another factor in probe.factors would."
        )
    for budget in summary["fit"]["budgets"]:
        yield from _about_effects(budget)
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
                    f"At {where} the optimal weight of {listed(solution[key])} rests on its "
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


def about_published_projection(projection: Mapping[str, Any]) -> Iterator[str]:
    """Bounds that moved the weights, and a mixture that does not follow from the fit."""
    if projection["change_l1"] > 1e-9:
        yield (
            f"Bounds moved the projected weights by {projection['change_l1']:.3f} in all and hold "
            f"{listed(projection['bounded'])}."
        )
    again = projection["kinds"].get(projection["projection"])
    if again and any(abs(again["weights"][n] - w) > 1e-6 for n, w in projection["weights"].items()):
        yield (
            "The mixture does not follow from the fit as it is now: the fit is newer, or bounds "
            "changed. Run `autoscale project` again."
        )
