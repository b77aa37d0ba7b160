"""What a notebook of the course must look like, checked without running it.

Every check is a function over a `Page` that yields one sentence per problem; `problems(path)` runs them all.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import unquote

import nbformat

REPOSITORY = Path(__file__).resolve().parent.parent

MAX_BYTES = 600_000
MAX_CELL_LINES = 30
MEDIAN_CELL_LINES = 9  # the median stays below this
PROSE_WORDS = (1_500, 3_500)
SHORTEST_START_PAGE = 600  # words, for 00_start_here
KNOWN_TAGS = {"nbval-check-output", "raises-exception", "stderr", "hide-input"}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
LANDMARKS = ("You will learn", "## Summary", "## Exercises", "## References")

FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
MATH = re.compile(r"\$\$.*?\$\$|\$[^$\n]+\$", re.DOTALL)
HTML_TAG = re.compile(r"<[^>\n]+>")
ANCHOR = re.compile(r"""<[^>]*\b(?:id|name)=["']([^"']+)["']""")
IMAGE = re.compile(r"!\[([^\]]*)\]\(\s*<?([^)\s>]+)")
HTML_IMAGE = re.compile(r"<img\b[^>]*>")
LINK = re.compile(
    r"(?<!!)\[(?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*\]\(\s*<?([^)\s>]+)|<a\b[^>]*\bhref=[\"']([^\"']+)"
)
HEADING = re.compile(r"^(#{1,6})\s+(.*?)\s*#*$", re.MULTILINE)
ABSOLUTE_PATH = re.compile(r"(?<![\w./:-])(?:/[\w.-]+){2,}/[\w.-]+|/(?:home|Users|tmp)/\w+|\b[A-Z]:\\\w+")
EXPLORER = re.compile(r"^explore_\w+\(", re.MULTILINE)
WARNINGS_HIDDEN = re.compile(r"\bfilterwarnings\(|\bsimplefilter\(|\bcatch_warnings\(")


@dataclass(frozen=True)
class Page:
    """A loaded notebook, with the views of it that several checks need."""

    path: Path
    notebook: Any  # nbformat.NotebookNode, whose attributes mypy can't know
    size: int  # bytes of the file

    @classmethod
    def load(cls, path: Path) -> Page:
        return cls(path, nbformat.read(path, as_version=nbformat.NO_CONVERT), path.stat().st_size)

    @property
    def markdown(self) -> str:
        """All prose joined, without fenced code blocks (whose `#` are comments, not headings)."""
        cells = (c.source for c in self.notebook.cells if c.cell_type == "markdown")
        return FENCE.sub("", "\n\n".join(cells))

    @property
    def code(self) -> list[tuple[str, Any]]:
        """The code cells that hold something, each with the words to name it by."""
        cells = [c for c in self.notebook.cells if c.cell_type == "code" and c.source.strip()]
        return [
            (f"code cell {i} ({c.source.strip().splitlines()[0][:40]!r})", c) for i, c in enumerate(cells, 1)
        ]


def code_sha256(notebook: Any) -> str:
    """Hash of the code that a notebook's outputs come from, as `notebooks.run` stores it in the metadata."""
    sources = [c.source for c in notebook.cells if c.cell_type == "code" and c.source.strip()]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def tags_of(cell: Any) -> set[str]:
    return set(cell.metadata.get("tags", []))


def problems(path: Path) -> list[str]:
    """Everything that is wrong with the notebook at `path`, one sentence each; empty if it is clean."""
    try:
        page = Page.load(path)
        nbformat.validate(page.notebook)
    except (ValueError, nbformat.ValidationError) as error:
        return [f"is not a valid notebook: {str(error).splitlines()[0]}"]
    if page.notebook.nbformat != 4:
        return [f"has format {page.notebook.nbformat}; save it again in JupyterLab, which writes format 4"]
    return [sentence for check in CHECKS for sentence in check(page)]


# --- the file ------------------------------------------------------------------------------------


def check_format(page: Page) -> Iterator[str]:
    notebook = page.notebook
    if (notebook.nbformat, notebook.nbformat_minor) < (4, 5):
        yield f"has format {notebook.nbformat}.{notebook.nbformat_minor}; 4.5 is the least (stable cell ids)"
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "names a kernel other than python3"
    if "widgets" in notebook.metadata:
        yield "carries metadata.widgets, which GitHub refuses to show; run `tools/notebooks.py clean`"
    if page.size > MAX_BYTES:
        yield f"is {page.size / 1e3:.0f} kB; {MAX_BYTES / 1e3:.0f} kB at most (smaller or fewer pictures)"


def check_tags(page: Page) -> Iterator[str]:
    for cell in page.notebook.cells:
        for tag in sorted(tags_of(cell) - KNOWN_TAGS):
            yield f"uses the unknown tag {tag!r}; known are {', '.join(sorted(KNOWN_TAGS))}"


# --- code ----------------------------------------------------------------------------------------


def check_cell_length(page: Page) -> Iterator[str]:
    lengths = [len(cell.source.splitlines()) for _, cell in page.code]
    for (name, _), lines in zip(page.code, lengths, strict=True):
        if lines > MAX_CELL_LINES:
            yield f"{name} has {lines} lines; {MAX_CELL_LINES} at most"
    if lengths and median(lengths) >= MEDIAN_CELL_LINES:
        yield f"the median code cell has {median(lengths):g} lines; it must stay below {MEDIAN_CELL_LINES}"


def check_plain_python(page: Page) -> Iterator[str]:
    for name, cell in page.code:
        try:
            tree = ast.parse(cell.source)
        except SyntaxError:
            yield f"{name} is not plain Python (a magic, `!` or a syntax error)"
            continue
        if "get_ipython" in cell.source:
            yield f"{name} calls get_ipython; magics are not used"
        if "NBVAL_" in cell.source:
            yield f"{name} has an NBVAL comment; use a cell tag"
        if WARNINGS_HIDDEN.search(cell.source):
            yield f"{name} hides warnings; mend their cause"
        if _depends_on_profile(tree):
            yield f"{name} branches on the profile; put the value that differs into deeplab_edu.profiles"


def _depends_on_profile(tree: ast.AST) -> bool:
    branches = [n.test for n in ast.walk(tree) if isinstance(n, ast.If | ast.IfExp)]
    branches += [n.subject for n in ast.walk(tree) if isinstance(n, ast.Match)]
    names = {n.id for branch in branches for n in ast.walk(branch) if isinstance(n, ast.Name)}
    return "profile" in names or "DEEPLAB_EDU_PROFILE" in ast.unparse(tree)


def check_no_duplicates(page: Page) -> Iterator[str]:
    for name, cell in page.code:
        for defined in sorted(_definitions(cell.source) & package_names()):
            yield f"{name} defines {defined!r}, which the package has too; import it or choose another name"


def _definitions(source: str) -> set[str]:
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return set()
    return {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}


@cache
def package_names() -> frozenset[str]:
    """Public functions and classes at the top level of the package's modules."""
    return frozenset(
        node.name
        for path in (REPOSITORY / "deeplab_edu").rglob("*.py")
        if path.parent.name != "classroom"  # for teachers; notebooks have no use for it
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    )


DRAWS_PICTURES = {  # of images and of what networks say about them, which the notebook computes
    *(
        "draw_image",
        "draw_labels",
        "draw_errors",
        "draw_overlay",
        "draw_prediction",
        "draw_heat",
        "draw_field",
    ),
}
DRAWS_RECORDS = {"draw_ladder", "draw_published", "draw_beside"}  # refuse what was not read from results/
DRAWS_NUMBERS = {  # methods of matplotlib's axes and of pyplot
    *("plot", "bar", "barh", "scatter", "errorbar", "hist", "pie", "stem", "step", "boxplot", "violinplot"),
    *(
        "fill_between",
        "hlines",
        "vlines",
        "axhline",
        "axvline",
        "text",
        "annotate",
        "table",
        "imshow",
        "matshow",
    ),
}
MAKES_RECORDS = {"Record", "Line", "save_result", "open", "read_text", "json", "loads"}
LAYOUT = {"figsize", "width_ratios", "height_ratios", "strength", "size", "longest", "iterations"}  # keywords
DECIMAL = re.compile(r"(?<![\w.:/])\d+\.\d+(?!\w|\.\d)")


def check_numbers_come_from_results(page: Page) -> Iterator[str]:
    """Notebook 09 shows results: figures draw what was read from `results/`; no number is typed, not in prose."""
    if not page.path.name.startswith("09_"):
        return
    for name, cell in page.code:
        try:
            tree = ast.parse(cell.source)
        except SyntaxError:
            continue
        for called in sorted(_called(tree)):
            if called in DRAWS_NUMBERS or (
                called.startswith("draw_") and called not in DRAWS_PICTURES | DRAWS_RECORDS
            ):
                yield f"{name} draws by {called}; figures of results are drawn by {', '.join(sorted(DRAWS_RECORDS))}"
        used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} | _called(tree)
        for made in sorted(used & MAKES_RECORDS):
            yield f"{name} uses {made}; results are read by load_result and read_published"
        if typed := _typed_numbers(tree):
            yield f"{name} holds typed numbers ({typed}); read them from results/"
    references = re.sub(r"^## References.*", "", _prose(page), flags=re.MULTILINE | re.DOTALL)
    for found in DECIMAL.findall(references):
        yield f"the text holds the number {found}; let code print it from results/"


def _called(tree: ast.AST) -> set[str]:
    """Names of what is called, with or without an object before the point."""
    functions = [n.func for n in ast.walk(tree) if isinstance(n, ast.Call)]
    return {f.id if isinstance(f, ast.Name) else getattr(f, "attr", "") for f in functions}


def _typed_numbers(tree: ast.AST) -> str:
    """A decimal number, or a list of two numbers and more, that is no matter of layout; the first one, as written."""
    ignored: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in LAYOUT:
            ignored |= set(ast.walk(node.value))
        if isinstance(node, ast.Subscript):
            ignored |= set(ast.walk(node.slice))
    for node in ast.walk(tree):
        if node in ignored:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, float):
            return ast.unparse(node)
        parts = (*node.keys, *node.values) if isinstance(node, ast.Dict) else getattr(node, "elts", ())
        numbers = [p for p in parts if isinstance(p, ast.Constant) and type(p.value) in (int, float)]
        if len(numbers) > 1:
            return ast.unparse(node)
    return ""


# --- outputs -------------------------------------------------------------------------------------


def check_executed(page: Page) -> Iterator[str]:
    counts = [cell.execution_count for _, cell in page.code]
    if counts != list(range(1, len(counts) + 1)):
        yield f"was not executed from top to bottom (counts {counts}); run `tools/notebooks.py execute`"
    record = page.notebook.metadata.get("deeplab_edu", {})
    if record.get("profile") != "cpu":
        yield f"was executed in profile {record.get('profile')!r}; committed outputs are those of 'cpu'"
    if record.get("code_sha256") != code_sha256(page.notebook):
        yield "has stale outputs: its code was edited after the last `tools/notebooks.py execute`"


def check_outputs(page: Page) -> Iterator[str]:
    for name, cell in page.code:
        kinds = {o.output_type for o in cell.outputs}
        if "error" in kinds and "raises-exception" not in tags_of(cell):
            yield f"{name} stores an error but is not tagged raises-exception"
        if "raises-exception" in tags_of(cell) and "error" not in kinds:
            yield f"{name} is tagged raises-exception but stores no error"
        if any(o.get("name") == "stderr" for o in cell.outputs) and "stderr" not in tags_of(cell):
            yield f"{name} wrote to stderr; mend the cause (or tag the cell stderr if that is the lesson)"
        if "nbval-check-output" in tags_of(cell) and (cell.execution_count is None or not cell.outputs):
            yield f"{name} is tagged nbval-check-output but stores no output to check"
        if any(WIDGET_VIEW in output.get("data", {}) for output in cell.outputs):
            yield f"{name} stores a widget, which only a live kernel can show; run `tools/notebooks.py clean`"
        if EXPLORER.search(cell.source) and not any("image/png" in o.get("data", {}) for o in cell.outputs):
            yield f"{name} opens an explorer and stores no picture of it; run `tools/notebooks.py execute`"


def check_absolute_paths(page: Page) -> Iterator[str]:
    for name, cell in page.code:
        if found := ABSOLUTE_PATH.search(cell.source):
            yield f"{name} names a path of one machine: {found[0]}"
        for output in cell.outputs:
            if found := ABSOLUTE_PATH.search(_text_of(output)):
                yield f"{name} printed a path of one machine: {found[0]}"
    if found := ABSOLUTE_PATH.search(_prose(page)):
        yield f"the text names a path of one machine: {found[0]}"


def _text_of(output: Any) -> str:
    shown = [output.get("text", ""), output.get("evalue", ""), *output.get("traceback", [])]
    shown += [
        text for kind, text in output.get("data", {}).items() if kind in ("text/plain", "text/markdown")
    ]
    return "\n".join(shown)


# --- prose ---------------------------------------------------------------------------------------


def _prose(page: Page) -> str:
    """The markdown as a reader sees it: no formulas, tags or link targets."""
    text = re.sub(r"\]\([^)]*\)", "]", page.markdown)
    return HTML_TAG.sub(" ", MATH.sub(" ", text))


def check_prose_length(page: Page) -> Iterator[str]:
    words = len(re.findall(r"[^\W\d_][\w'’-]*", _prose(page)))
    least, most = PROSE_WORDS
    if page.path.name.startswith("00_"):
        least = SHORTEST_START_PAGE
    if not least <= words <= most:
        yield f"has {words} words of prose; {least} to {most} are wanted"


def check_headings(page: Page) -> Iterator[str]:
    first = page.notebook.cells[0] if page.notebook.cells else None
    begins = "Appendix:" if page.path.name.startswith("appendix_") else page.path.name[:2]
    if first is None or first.cell_type != "markdown" or not re.match(rf"# {begins} \S", first.source):
        yield f"must begin with a markdown cell `# {begins} Title`"
    position = 0
    for landmark in LANDMARKS:
        found = re.compile(rf"^.*{landmark}" if landmark[0] != "#" else rf"^{landmark}\b", re.MULTILINE)
        match = found.search(page.markdown, position)
        if match is None:
            yield f"lacks {landmark!r} (or has it out of order)"
        else:
            position = match.end()


def check_exercises(page: Page) -> Iterator[str]:
    """Under `## Exercises`: one `###` heading an exercise, with its minutes and a folded solution."""
    section = re.search(r"^## Exercises\b(.*?)(?=^## |\Z)", page.markdown, re.MULTILINE | re.DOTALL)
    if section is None:
        return
    exercises = re.split(r"^### +", section[1], flags=re.MULTILINE)[1:]
    if not exercises:
        yield "has no exercise: each is a `###` heading under `## Exercises`"
    for exercise in exercises:
        title = exercise.splitlines()[0]
        if "<details" not in exercise or "</details>" not in exercise:
            yield f"exercise {title!r} has no folded solution (<details>)"
        if not re.search(r"\bmin\b|\bminutes?\b", exercise):
            yield f"exercise {title!r} does not say how many minutes it takes"


def check_images(page: Page) -> Iterator[str]:
    text = page.markdown
    images = [(found[1], found[2]) for found in IMAGE.finditer(text)]
    images += [(_attribute(tag, "alt"), _attribute(tag, "src")) for tag in HTML_IMAGE.findall(text)]
    attached = {name for cell in page.notebook.cells for name in cell.get("attachments", {})}
    for alt, target in images:
        if not alt.strip():
            yield f"the image {target} has no alt text"
        if target.startswith(("http:", "https:")):
            yield f"the image {target} is fetched from elsewhere; keep it in the repository"
        elif target.startswith("attachment:"):
            if target.removeprefix("attachment:") not in attached:
                yield f"the image {target} is not attached"
        elif not (page.path.parent / unquote(target)).is_file():
            yield f"the image {target} does not exist"


def _attribute(tag: str, name: str) -> str:
    found = re.search(rf"""\b{name}=["']([^"']*)["']""", tag)
    return found[1] if found else ""


def check_links(page: Page) -> Iterator[str]:
    anchors = _anchors(page)
    for found in LINK.finditer(page.markdown):
        target = found[1] or found[2]
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = unquote(target).partition("#")
        if file and not (page.path.parent / file).exists():
            yield f"the link to {file} leads nowhere"
        if not file and anchor not in anchors:
            yield f"the link to #{anchor} leads nowhere"


def _anchors(page: Page) -> set[str]:
    """Ids a link can point at: explicit ones, and headings as JupyterLab and as GitHub spell them."""
    titles = [HTML_TAG.sub("", title) for _, title in HEADING.findall(page.markdown)]
    jupyter = {title.replace(" ", "-") for title in titles}
    github = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    return jupyter | github | set(ANCHOR.findall(page.markdown))


CHECKS = (
    check_format,
    check_tags,
    check_cell_length,
    check_plain_python,
    check_no_duplicates,
    check_numbers_come_from_results,
    check_executed,
    check_outputs,
    check_absolute_paths,
    check_prose_length,
    check_headings,
    check_exercises,
    check_images,
    check_links,
)
