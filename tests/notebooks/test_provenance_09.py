"""Notebook 09 holds no number that is typed in: figures draw what was read from files that say where it comes from."""

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hygiene
from deeplab_edu.results import FOLDER, load_result, provenance
from pages import code

PAGE = hygiene.REPOSITORY / "notebooks" / "09_results_and_your_images.ipynb"


def found(clean_page: Any, save: Callable[..., Path], *, source: str = "", prose: str = "") -> list[str]:
    """What the check says of a page called 09_... with this cell, or with this prose, in it."""
    clean_page.cells[0].source = clean_page.cells[0].source.replace("# 07", "# 09")
    clean_page.cells[2].source += f"\n\n{prose}"
    if source:
        clean_page.cells.insert(2, code(source, count=2))
    page = hygiene.Page.load(save("09_page", clean_page))
    return list(hygiene.check_numbers_come_from_results(page))


FIGURES = {
    "ax.bar(names, heights)": "draws by bar; figures of results are drawn by draw_beside, draw_ladder",
    "plt.plot([0.2, 0.4])": "draws by plot",
    "draw_lines(ax, {'v3': (x, y)}, 'x', 'y')": "draws by draw_lines",
    "draw_scores(ax, scores, metrics)": "draws by draw_scores",
    "draw_ladder(axes, Record(measured=mine))": "uses Record",
    "draw_ladder(axes, json.loads(text))": "uses json",
    "heights = [62, 71, 79]": "holds typed numbers ([62, 71, 79])",
    "scores = {'v2': 79.7, 'v3': 85.7}": "holds typed numbers (",
    "best = 87.8": "holds typed numbers (87.8)",
    "table = np.array([[1, 2], [3, 4]])": "holds typed numbers ([1, 2])",
}


@pytest.mark.parametrize("source", FIGURES)
def test_a_figure_or_a_number_that_is_not_read_from_results_is_refused(source, clean_page, save):
    assert any(FIGURES[source] in sentence for sentence in found(clean_page, save, source=source))


@pytest.mark.parametrize(
    "source",
    [
        "fig, axes = plt.subplots(2, 4, figsize=(9.5, 4.25), width_ratios=[1, 2.5])",
        "draw_ladder(axes, load_result('ladder.cpu'))",
        "draw_published(ax, read_published('voc2012_test'), 'title')",
        "draw_image(axes[0, 1], image, 'picture')",
        "heights = [row['miou'] for row in rows[2:5]]",
    ],
)
def test_what_is_read_from_results_is_not(source, clean_page, save):
    assert found(clean_page, save, source=source) == []


def test_a_number_in_the_text_is_refused_and_names_are_not(clean_page, save):
    assert found(clean_page, save, prose="v3+ reaches 87.8 points, and v2 79.7.") == [
        "the text holds the number 87.8; let code print it from results/",
        "the text holds the number 79.7; let code print it from results/",
    ]
    allowed = "PASCAL VOC 2012, DeepLabv3+, [arXiv:1802.02611](https://arxiv.org/abs/1802.02611), $0.9$ and three seeds"
    assert len(found(clean_page, save, prose=allowed)) == 2, "only what was planted before"


def test_another_notebook_may(clean_page, save):
    page = hygiene.Page.load(save("07_page", clean_page))
    assert list(hygiene.check_numbers_come_from_results(page)) == []


def test_every_result_that_09_draws_says_where_it_comes_from():
    """Command, profile, seeds, device and versions; and the command is one of this repository."""
    sources = [cell.source for _, cell in hygiene.Page.load(PAGE).code]
    names = {n for source in sources for n in re.findall(r"load_result\(\"([\w.]+)\"\)", source)}
    assert "ladder.cpu" in names, "the ladder is drawn from its record"
    calls = [n for s in sources for n in ast.walk(ast.parse(s)) if isinstance(n, ast.Call)]
    loads = [c for c in calls if getattr(c.func, "id", "") == "load_result"]
    assert all(len(c.args) == 1 and not c.keywords for c in loads), "records are read from results/ alone"
    for name in names:
        if (FOLDER / f"{name}.json").exists():
            record = load_result(name)
            assert record["command"] in provenance(record)
            assert (hygiene.REPOSITORY / record["command"].split()[1]).is_file()


def test_every_record_behind_the_ledger_says_where_it_comes_from():
    from deeplab_edu.ledger import ledger

    for name in {line.record for line in ledger() if line.differences}:
        assert provenance(load_result(name))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("full_size_*.json")), ids=lambda path: path.stem)
def test_every_record_at_full_size_says_where_it_comes_from(path):
    """The table at the end of 09 is made of whatever such files there are."""
    record = load_result(path.stem)
    assert record["command"] in provenance(record)
