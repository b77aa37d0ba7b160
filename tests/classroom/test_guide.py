"""What the teaching guide and the glossary say of other files is true of them."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from deeplab_edu.classroom.assignment import SOURCES, find
from deeplab_edu.profiles import PROFILES

ROOT = SOURCES.parents[2]
GUIDE = (ROOT / "docs/teaching-guide.md").read_text(encoding="utf-8")
CURES = re.findall(r"^\| \"(.+?)\" \| \[\d\d\]\((\S+?)\), \*(.+?)\*", GUIDE, re.M)


def section(path: Path, heading: str) -> list[Any]:
    """The cells from a heading to the next of its level."""
    found, inside = [], False
    for cell in nbformat.read(path, as_version=4).cells:
        heads = re.findall(r"^## (.+)$", cell.source, re.M) if cell.cell_type == "markdown" else []
        inside = heading in heads or (inside and not heads)
        found += [cell] if inside else []
    return found


def test_there_are_cures() -> None:
    assert len(CURES) > 10


@pytest.mark.parametrize("idea, link, heading", CURES)
def test_what_cures_a_misconception_is_there_to_see(idea: str, link: str, heading: str) -> None:
    cells = section(ROOT / "docs" / link, heading)
    assert cells, f"{link} has no section {heading!r}"
    assert any(cell.get("outputs") for cell in cells), "a section that shows nothing"


def test_minutes_are_those_that_notebooks_announce() -> None:
    rows = re.findall(r"^\| (\d\d) [^|]+\| [^|]+\| ([\d.]+) \(([\d.]+)\) \|", GUIDE, re.M)
    named = {stem[:2]: (PROFILES["cpu"].minutes[stem], m) for stem, m in PROFILES["ci"].minutes.items()}
    assert {number: (float(cpu), float(ci)) for number, cpu, ci in rows} == {
        number: minutes for number, minutes in named.items() if number.isdigit()
    }


def test_every_question_in_words_has_a_rubric() -> None:
    for path in SOURCES.glob("*/*.ipynb"):
        made = find(path.stem)
        for name in made.by_hand:
            question = f"{path.stem[:2]} Q{re.search(r'[0-9]+', name)[0]}"  # type: ignore[index]
            [row] = re.findall(rf"^\| {question} \| (.+) \|$", GUIDE, re.M)
            assert row.count(" · ") == made.by_hand[name] - 1, "one idea a point"


def test_plans_name_every_assignment() -> None:
    weeks = GUIDE[GUIDE.index("**Six weeks**") : GUIDE.index("**Two days**")]
    for path in SOURCES.glob("*/*.ipynb"):
        assert re.search(rf"\b{path.stem[:2]}\b", weeks) or path.stem[:2] in ("a4", "a5")
    assert "a4 or a5" in weeks


def test_glossary_has_both_languages_and_no_term_twice() -> None:
    text = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    rows = [row.strip("| ").split(" | ") for row in text.splitlines() if row.startswith("| ")][1:]
    assert all(len(row) == 3 and all(row) for row in rows)
    terms = [row[0] for row in rows]
    assert len(set(terms)) == len(terms) > 100
    assert not [row for row in rows if not re.search(r"[가-힣]", row[1])]
