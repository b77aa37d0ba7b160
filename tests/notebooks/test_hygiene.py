"""The course's notebooks are in order, and the checks that say so find each defect planted in a clean page."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

import hygiene
import notebooks as runner

NOTEBOOKS = sorted(runner.NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path: Path) -> None:
    assert hygiene.problems(path) == []


def test_the_readme_lists_every_notebook() -> None:
    """Also what keeps the test above from passing for ever with nothing to look at."""
    readme = (hygiene.REPOSITORY / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\|.*?\(notebooks/((?:\d\d|appendix)_\w+\.ipynb)\)", readme, re.MULTILINE)
    assert listed == [path.name for path in NOTEBOOKS]


def test_a_clean_page_is_clean(clean_page: Any, save: Callable[..., Path]) -> None:
    assert hygiene.problems(save("07_page", clean_page)) == []


def test_an_appendix_has_a_word_in_place_of_a_number(clean_page: Any, save: Callable[..., Path]) -> None:
    found = hygiene.problems(save("appendix_page", clean_page))
    assert found == ["must begin with a markdown cell `# Appendix: Title`"]
    clean_page.cells[0].source = clean_page.cells[0].source.replace("# 07", "# Appendix:")
    assert hygiene.problems(save("appendix_page", clean_page)) == []


def append(text: str) -> Callable[[Any], None]:
    """Plant `text` into the clean page's prose, before its summary."""

    def plant(notebook: Any) -> None:
        notebook.cells[2].source += f"\n\n{text}\n\n"

    return plant


def insert(source: str, *tags: str, **output: str) -> Callable[[Any], None]:
    """Plant one more executed code cell, with its hash, so that nothing else is wrong."""

    def plant(notebook: Any) -> None:
        outputs = [new_output("stream", **output)] if output else []
        cell = new_code_cell(source, execution_count=3, metadata={"tags": list(tags)}, outputs=outputs)
        notebook.cells.insert(4, cell)
        notebook.metadata["deeplab_edu"]["code_sha256"] = hygiene.code_sha256(notebook)

    return plant


def change(index: int, **attributes: Any) -> Callable[[Any], None]:
    """Set attributes of the cell at `index`."""

    def plant(notebook: Any) -> None:
        notebook.cells[index].update(attributes)

    return plant


def metadata(**entries: Any) -> Callable[[Any], None]:
    return lambda notebook: notebook.metadata.update(entries)


def without(index: int) -> Callable[[Any], None]:
    return lambda notebook: notebook.cells.pop(index)


def stale(notebook: Any) -> None:
    notebook.cells[1].source = "print(6 * 8)"


def long_cells(notebook: Any) -> None:
    notebook.cells[1].source = notebook.cells[3].source = "x = 1\n" * 9


def old_format(notebook: Any) -> None:
    notebook.nbformat_minor = 4
    for cell in notebook.cells:
        del cell["id"]


def widget_view(notebook: Any) -> None:
    view = {hygiene.WIDGET_VIEW: {"model_id": "1"}, "text/plain": "interactive(...)"}
    notebook.cells[1].outputs.append(new_output("display_data", data=view))


SOLUTION = "<details><summary>Solution</summary>So.</details>"
DEFECTS = {
    # the file
    "4.5 is the least": old_format,
    "a kernel other than python3": metadata(kernelspec={"name": "mine", "display_name": "Mine"}),
    "carries metadata.widgets": metadata(widgets={}),
    "; 600 kB at most": metadata(deeplab_edu={"profile": "cpu", "padding": "x" * 600_000}),
    "the unknown tag 'nbval-skip'": change(0, metadata={"tags": ["nbval-skip"]}),
    # code
    "has 31 lines; 30 at most": insert("\n".join(f"x{i} = {i}" for i in range(31))),
    "the median code cell has 9 lines": long_cells,
    "is not plain Python": insert("%notmagic"),
    "calls get_ipython": insert("get_ipython().run_line_magic('time', '')"),
    "has an NBVAL comment": insert("# NBVAL_SKIP\nx = 1"),
    "hides warnings": insert("import warnings\nwarnings.filterwarnings('ignore')"),
    "branches on the profile": insert("x = 1 if profile.name == 'ci' else 2"),
    "defines 'build_model', which the package has too": insert("def build_model():\n    pass"),
    # outputs
    "has stale outputs": stale,
    "was not executed from top to bottom (counts [1, 5])": change(3, execution_count=5),
    "was not executed from top to bottom (counts [None, 2])": change(1, execution_count=None),
    "was executed in profile 'ci'": metadata(deeplab_edu={"profile": "ci"}),
    "stores an error but is not tagged": change(3, metadata={}),
    "is tagged raises-exception but stores no error": change(3, outputs=[]),
    "wrote to stderr": insert("import sys", name="stderr", text="deprecated"),
    "is tagged nbval-check-output but stores no output": change(1, outputs=[]),
    "stores a widget": widget_view,
    "opens an explorer and stores no picture": insert("explore_taps((2, 2, 2))"),
    "names a path of one machine: /home/ada": insert("open('/home/ada')"),
    "printed a path of one machine: /usr/lib/python3/x.py": insert(
        "x", name="stdout", text="File /usr/lib/python3/x.py:3"
    ),
    "the text names a path of one machine: C:\\Users": append("Look into C:\\Users\\ada."),
    # prose
    "words of prose; 1500 to 3500 are wanted": change(2, source="See [the end](#Summary)."),
    "must begin with a markdown cell `# 07 Title`": change(0, source="# A page\n\nYou will learn"),
    "lacks 'You will learn'": change(0, source="# 07 A page"),
    "lacks '## Summary'": change(4, source="## Sum\n\n<a id='Summary'></a>"),
    "lacks '## Exercises'": without(5),
    "lacks '## References'": without(6),
    "has no exercise": change(5, source="## Exercises\n\nNone."),
    "has no folded solution": change(5, source="## Exercises\n\n### One (5 min)\n\nWhy?"),
    "does not say how many minutes": change(5, source=f"## Exercises\n\n### One\n\nWhy?\n\n{SOLUTION}"),
    "the image 07_page.ipynb has no alt text": append("![](07_page.ipynb)"),
    "the image page.png has no alt text": append("<img src='page.png'>"),
    "the image nowhere.png does not exist": append("![a picture](nowhere.png)"),
    "is fetched from elsewhere": append("![a picture](https://example.org/a.png)"),
    "the image attachment:a.png is not attached": append("![a picture](attachment:a.png)"),
    "the link to nowhere.ipynb leads nowhere": append("[next](nowhere.ipynb)"),
    "the link to #nowhere leads nowhere": append("[there](#nowhere)"),
}


@pytest.mark.parametrize("sentence", DEFECTS)
def test_a_planted_defect_is_found(sentence: str, clean_page: Any, save: Callable[..., Path]) -> None:
    DEFECTS[sentence](clean_page)
    found = hygiene.problems(save("07_page", clean_page))
    assert any(sentence in problem for problem in found), found


@pytest.mark.parametrize(
    "text",
    [
        "FCN-32s/16s/8s and and/or/not",
        "[a page](https://example.org/one/two/three)",
        "$a/b/c/d$ and 1/2/3/4",
        "[the summary](#summary)",
        "```bash\n# not a heading\nls\n```",
        "<a id='here'></a> [here](#here)",
        "![this page](07_page.ipynb)",
    ],
)
def test_no_false_alarm(text: str, clean_page: Any, save: Callable[..., Path]) -> None:
    append(text)(clean_page)
    assert hygiene.problems(save("07_page", clean_page)) == []


def test_the_start_page_may_be_short(clean_page: Any, save: Callable[..., Path]) -> None:
    clean_page.cells[0].source = "# 00 Start\n\nYou will learn"
    clean_page.cells[2].source = "word " * 700
    assert hygiene.problems(save("00_start", clean_page)) == []
    clean_page.cells[2].source = "word " * 500
    assert "600 to 3500" in hygiene.problems(save("00_start", clean_page))[0]


@pytest.mark.parametrize("text", ["", "{}", '{"cells": 3}', "not json"])
def test_a_file_that_is_no_notebook(text: str, tmp_path: Path) -> None:
    path = tmp_path / "07_page.ipynb"
    path.write_text(text)
    assert len(hygiene.problems(path)) == 1


def test_the_check_command(
    clean_page: Any, save: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = save("07_page", clean_page)
    assert runner.main(["check", str(path)]) == 0
    assert "1 notebooks are in order" in capsys.readouterr().out
    clean_page.cells.insert(3, new_markdown_cell("[there](#nowhere)"))
    assert runner.main(["check", str(save("07_page", clean_page))]) == 1
    assert "07_page.ipynb: the link to #nowhere leads nowhere" in capsys.readouterr().out


def test_a_name_that_is_no_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        runner.main(["check", "nowhere.ipynb"])
    assert "no such notebook" in capsys.readouterr().err
