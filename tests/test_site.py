"""The pages that `make site` makes: all notebooks, their pictures in place of widgets, no link that leads nowhere."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

pytest.importorskip("myst_nb", reason="the site's tools are not installed: pip install -e '.[dev]'")
from sphinx.cmd.build import main as sphinx_build

TOP = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((TOP / "notebooks").glob("*.ipynb"))


class Targets(HTMLParser):
    """What a page shows and links to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.ids: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids |= {given["id"]} if given.get("id") else set()
        self.targets += [given[name] for name in ("href", "src") if given.get(name)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as the Makefile does; a warning is an error."""
    into = tmp_path_factory.mktemp("site")
    options = re.search(r"sphinx-build (.*) build/site", (TOP / "Makefile").read_text())[1].split()
    options[options.index("docs")] = str(TOP / "docs")
    options[options.index(".")] = str(TOP)
    assert sphinx_build([*options, str(into)]) == 0
    return into


def test_every_notebook_has_a_page_with_its_pictures(site):
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        outputs = [o for c in nbformat.read(path, 4).cells for o in c.get("outputs", [])]
        pictures = sum("image/png" in o.get("data", {}) for o in outputs)
        page = (site / "notebooks" / f"{path.stem}.html").read_text(encoding="utf-8")
        assert len(re.findall(r'<img [^>]*src="\.\./_images/\w+\.png"', page)) >= pictures > 0, path.stem
        assert "widget-view" not in page


def test_no_link_leads_nowhere(site):
    pages = {
        page: Targets(page)
        for page in site.rglob("*.html")
        if page.name not in ("genindex.html", "search.html")
    }
    wrong = []
    for page, found in pages.items():
        for target in found.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            anchors = pages[file].ids if file in pages else None
            if not file.is_file() or (
                parts.fragment and anchors is not None and unquote(parts.fragment) not in anchors
            ):
                wrong.append(f"{page.relative_to(site)}: {target}")
    assert wrong == []


def test_the_readme_lists_every_page(site):
    readme = Targets(site / "README.html").targets
    pages = {
        p.relative_to(site).as_posix()
        for folder in ("notebooks", "docs")
        for p in (site / folder).glob("*.html")
    }
    assert pages <= set(readme)
