import re
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from autoscale import figures, law_figures
from autoscale.figure_style import INK, colour_variables, to_svg
from autoscale.summary import summarise
from tests.unit.fake_experiment import FakeExperiment, complete_experiment


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    return summarise(complete_experiment(tmp_path_factory).config)


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    return summarise(complete_experiment(tmp_path_factory, "auto").config)


DRAWN = (figures.target_weights, figures.projection_path, figures.loss_curves)


@pytest.fixture(scope="module")
def svgs(summary, joint):
    drawn = {draw.__name__: to_svg(draw(summary), draw.__name__, "It shows") for draw in DRAWN}
    of_joint = (figures.target_weights, law_figures.objective_agreement)
    drawn |= {
        f"joint-{draw.__name__}": to_svg(draw(joint), f"joint-{draw.__name__}", "It shows")
        for draw in of_joint
    }
    curves = law_figures.fitted_curves(summary) | {
        f"joint-{name}": figure for name, figure in law_figures.set_residuals(joint).items()
    }
    return drawn | {name: to_svg(curve, name, "A law") for name, curve in curves.items()}


def test_every_figure_is_one_svg_element_with_a_description(svgs):
    assert len(svgs) == 3 + 2 + 4 + 4
    for svg in svgs.values():
        root = ElementTree.fromstring(svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root.get("role") == "img" and root.get("aria-label")


def test_ink_and_colours_follow_the_page(svgs):
    for svg in svgs.values():
        assert "currentColor" in svg
        assert INK not in svg
        drawn = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", svg))
        assert not drawn - {"#ffffff"}


def test_ids_of_two_figures_never_meet(svgs):
    ids = [re.findall(r'\bid="([^"]+)"', svg) for svg in svgs.values()]
    for svg, own in zip(svgs.values(), ids, strict=True):
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg)) <= set(own)
    together = [name for own in ids for name in set(own)]
    assert len(together) == len(set(together))


def test_drawing_twice_gives_the_same_bytes(summary):
    first, second = (to_svg(figures.target_weights(summary), "w", "Weights") for _ in range(2))
    assert first == second


def test_themes_define_the_same_variables():
    light, dark = (colour_variables(theme) for theme in ("light", "dark"))
    assert light.keys() == dark.keys()
    assert all(light[name] != dark[name] for name in light)


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("theme", "paper"), [("light", "#ffffff"), ("dark", "#14171b")])
def test_colours_stand_out_from_the_paper(theme, paper):
    for name, colour in colour_variables(theme).items():
        bright, dim = sorted((luminance(colour), luminance(paper)), reverse=True)
        if name != "--grid":
            assert (bright + 0.05) / (dim + 0.05) >= 3, name


def test_what_has_not_run_is_not_drawn(tmp_path):
    fake = FakeExperiment(tmp_path)
    empty = summarise(fake.config)
    assert [draw(empty) for draw in DRAWN] == [None, None, None]
    assert law_figures.fitted_curves(empty) == {}
    assert law_figures.objective_agreement(empty) is None
    assert law_figures.set_residuals(empty) == {}


def test_each_law_has_its_own_figures(summary, joint):
    assert law_figures.objective_agreement(summary) is None
    assert law_figures.set_residuals(summary) == {}
    assert law_figures.fitted_curves(joint) == {}
    assert figures.projection_path(joint) is None  # one probe budget shows no path


def test_runs_of_a_budget_that_the_law_does_not_know_are_not_drawn(joint):
    budget = joint["fit"]["budgets"][0]
    points = [{**point, "predicted": None} for point in budget["points"]]
    fit = {**joint["fit"], "budgets": [{**budget, "points": points}]}
    assert law_figures.objective_agreement({**joint, "fit": fit}) is None


def test_the_noise_and_the_intervals_are_drawn_where_they_are_known(joint):
    [axes] = law_figures.objective_agreement(joint).axes
    with_noise = len(axes.collections)
    budget = {**joint["fit"]["budgets"][0], "seed_noise": None}
    fit = {**joint["fit"], "budgets": [budget]}
    [axes] = law_figures.objective_agreement({**joint, "fit": fit}).axes
    assert len(axes.collections) == with_noise - 1
    [axes] = figures.target_weights(joint).axes
    assert len(axes.collections) == 1
    without = {**joint["decision"], "low": None, "high": None}
    [axes] = figures.target_weights({**joint, "decision": without}).axes
    assert len(axes.collections) == 0


def test_names_of_domains_are_escaped(summary):
    renamed = {
        **summary,
        "domains": ["a<b"],
        "sets": ["a<b"],
        "baselines": [],
        "projection": {"weights": {"a<b": 1.0}},
    }
    ElementTree.fromstring(to_svg(figures.target_weights(renamed), "w", 'a "<" b'))


def test_pyplot_with_its_global_state_is_not_used():
    assert "matplotlib.pyplot" not in sys.modules
