"""Small notebooks, made on the spot, to prove that the checks find what is planted in them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell, new_notebook

import hygiene
from pages import code


@pytest.fixture
def clean_page() -> Any:
    """A notebook in which every hygiene check finds nothing: the ground that defects are planted in."""
    solution = "<details><summary>Solution</summary>So.</details>"
    notebook = new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        cells=[
            new_markdown_cell("# 07 A clean page\n\nOne claim.\n\n**You will learn** what is checked."),
            code("print(6 * 7)", "nbval-check-output", count=1, stdout="42\n"),
            new_markdown_cell("## The middle\n\n" + "word " * 1600 + "\n\nSee [the end](#Summary)."),
            code("int('seven')", "raises-exception", count=2, error="ValueError: invalid literal"),
            new_markdown_cell("## Summary\n\n- One thing."),
            new_markdown_cell(f"## Exercises\n\n### Exercise 1 (easy, 5 min)\n\nWhy?\n\n{solution}"),
            new_markdown_cell("## References\n\n[Long et al.](https://arxiv.org/abs/1411.4038)"),
        ],
    )
    notebook.metadata["deeplab_edu"] = {
        "profile": "cpu",
        "seconds": 1.0,
        "code_sha256": hygiene.code_sha256(notebook),
    }
    return notebook


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """save(name, *cells) or save(name, notebook) -> path of the written notebook."""

    def write(name: str, *content: Any) -> Path:
        whole = len(content) == 1 and "cells" in content[0]
        path = tmp_path / f"{name}.ipynb"
        nbformat.write(content[0] if whole else new_notebook(cells=list(content)), path)
        return path

    return write
