"""How `make site` turns README, notebooks and docs/ into pages: Sphinx reads them as they are and runs nothing."""

project = "DeepLab, explained by running it"
author = "The deeplab_edu authors"
copyright = "CC BY 4.0 (text and figures), MIT (code)"
html_title = project
html_theme = "furo"
html_show_sphinx = False
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_sourcelink_suffix = ""  # "view source" hands out the notebook itself
extensions = ["myst_nb", "sphinx_copybutton"]

root_doc = "README"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "notebooks/*.ipynb", "docs/*.md"]

nb_execution_mode = "off"  # the outputs are the committed ones
nb_mime_priority_overrides = [("html", "image/png", 0)]  # a picture in place of what only a kernel can show
nb_ipywidgets_js = {}  # and no scripts for it
nb_merge_streams = True
nb_render_markdown_format = "myst"  # tables among the outputs, too
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4
copybutton_selector = "div.cell_input div.highlight pre, div.highlight-sh pre"

CONTENTS = """
```{toctree}
:hidden:
:caption: Notebooks
:glob:

notebooks/*
```

```{toctree}
:hidden:
:caption: Beside them
:glob:

docs/*
CONTRIBUTING
CHANGELOG
```
"""


def add_contents(app, name: str, source: list[str]) -> None:
    """The README lists its pages for people; Sphinx wants a list, too."""
    if name == root_doc:
        source[0] += CONTENTS


def setup(app) -> None:
    app.connect("source-read", add_contents)
