"""What the teacher gets: grades.csv, a file each for Canvas and Moodle, and a page of feedback for each student."""

import csv
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from .assignment import Assignment
from .grading import Result
from .submissions import Submission

MESSAGE = 3_000  # characters of a message in the feedback
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 50em; margin: 2em auto; padding: 0 1em; color: #222 }}
pre {{ background: #f5f3ef; padding: .8em; overflow-x: auto; white-space: pre-wrap }}
td pre {{ margin: 0 }}
table {{ border-collapse: collapse }} td, th {{ padding: .3em 1em .3em 0; text-align: left; vertical-align: top }}
.lost {{ color: #a33 }} .full {{ color: #26734d }}
</style></head><body><h1>{title}</h1>{body}</body></html>
"""


def write_report(assignment: Assignment, graded: Sequence[tuple[Submission, Result]], out: Path) -> None:
    """Write everything into the folder `out`."""
    (out / "feedback").mkdir(parents=True, exist_ok=True)
    write_grades(assignment, [result for _, result in graded], out / "grades.csv")
    write_canvas(assignment, graded, out / "canvas.csv")
    write_moodle(graded, out / "moodle.csv")
    for _, result in graded:
        page = feedback(assignment, result)
        (out / "feedback" / f"{result.student}.html").write_text(page, encoding="utf-8")


def write_grades(assignment: Assignment, results: Iterable[Result], path: Path) -> None:
    """One row a student. Empty cells: not graded, which `state` explains; a 0 is a 0."""
    tests, open_questions = assignment.points, assignment.by_hand
    header = [*tests, "total", "max", *(f"{name} (by hand, of {n:g})" for name, n in open_questions.items())]
    rows = []
    for result in results:
        points = [_number(result.verdicts[t].points) if t in result.verdicts else "" for t in tests]
        total = "" if result.total is None else _number(result.total)
        rows.append(
            [result.student, *points, total, _number(sum(tests.values()))]
            + ["" for _ in open_questions]
            + [f"{result.seconds:.1f}", result.state]
        )
    _write(path, ["student", *header, "seconds", "state"], rows)


def write_canvas(assignment: Assignment, graded: Sequence[tuple[Submission, Result]], path: Path) -> None:
    """The columns that Canvas imports (Grades > Import). Ungraded rows stay empty, so that nothing is overwritten."""
    header = ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", assignment.name]
    possible = ["    Points Possible", "", "", "", "", _number(sum(assignment.points.values()))]
    rows = [
        [result.student, sub.number if sub.system == "canvas" else "", "", "", "", _total(result)]
        for sub, result in graded
    ]
    _write(path, header, [possible, *rows])


def write_moodle(graded: Sequence[tuple[Submission, Result]], path: Path) -> None:
    """The columns of Moodle's offline grading worksheet (View all submissions > Upload grading worksheet)."""
    rows = [
        [
            f"Participant {sub.number}" if sub.system == "moodle" else "",
            result.student,
            _total(result),
            result.state,
        ]
        for sub, result in graded
    ]
    _write(path, ["Identifier", "Full name", "Grade", "Feedback comments"], rows)


def _total(result: Result) -> str:
    return "" if result.total is None else _number(result.total)


def _number(value: float) -> str:
    return f"{value:g}"


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as file:  # the mark tells Excel that it is UTF-8
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([[_harmless(value) for value in row] for row in rows])


def _harmless(value: str) -> str:
    """No cell that a spreadsheet would take for a formula, on one line."""
    value = " ".join(value.split(" ")).replace("\n", " ").replace("\r", " ")[:1_000]
    return f"'{value}" if value[:1] in ("=", "+", "-", "@", "\t") else value


def feedback(assignment: Assignment, result: Result) -> str:
    """A page that stands alone: points, why some were lost, and the student's own answers. All text is escaped."""
    say = html.escape
    parts = [f"<p>{say(result.student)}: {say(result.state[:MESSAGE])}</p>"]
    if result.verdicts:
        most = sum(v.most for v in result.verdicts.values())
        by_hand = sum(assignment.by_hand.values())
        more = f", and {by_hand:g} graded by a person" if by_hand else ""
        parts.append(f"<p><strong>{result.total:g} of {most:g} points</strong>{more}</p>")
        parts.append("<table><tr><th>test</th><th>points</th><th></th></tr>")
        for name, verdict in result.verdicts.items():
            kind = "full" if verdict.points == verdict.most else "lost"
            message = f"<pre>{say(verdict.message[:MESSAGE])}</pre>" if verdict.message else ""
            parts.append(
                f'<tr><td>{say(name)}</td><td class="{kind}">{verdict.points:g} of {verdict.most:g}</td>'
                f"<td>{message}</td></tr>"
            )
        parts.append("</table>")
    for name in [*assignment.answers, *assignment.by_hand]:
        if name in result.answers:
            parts.append(f"<h2>{say(name)}</h2><pre>{say(result.answers[name][:20_000])}</pre>")
    return PAGE.format(title=say(f"{assignment.name}: feedback"), body="\n".join(parts))
