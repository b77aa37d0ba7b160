"""Command line of the classroom: release, grade, check. `python -m deeplab_edu.classroom -h` lists the options."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import nbformat

from . import __doc__ as about
from .assignment import Assignment, AssignmentError, find, release
from .batch import grade_all, jobs_here, rehearse
from .grading import HereChannel, grade_notebook
from .report import write_report
from .sandbox import Limits, NoSandbox, check_sandbox, compiled_folder
from .submissions import collect


def main(arguments: list[str] | None = None) -> int:
    """Returns 0; 1 if an answer is wrong (`check`); 2 after a message if the command could not be carried out."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (AssignmentError, NoSandbox, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deeplab_edu.classroom",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("name", help="e.g. a1_metrics")
    common.add_argument("--source", type=Path, help="a folder of your own with NAME/NAME.ipynb")
    common.add_argument("--year", type=int, help="draws other numbers; the same for release and grade")

    command = commands.add_parser("release", parents=[common], help="write the students' version")
    command.add_argument("out", type=Path)
    command.set_defaults(run=command_release)

    command = commands.add_parser("grade", parents=[common], help="grade a folder or a zip file of notebooks")
    command.add_argument("submissions", type=Path)
    command.add_argument("out", type=Path)
    command.add_argument("--hidden", type=Path, help="a private folder with more hidden tests: NAME.py")
    command.add_argument("--no-sandbox", action="store_true", help="run strangers' code with all your rights")
    command.add_argument(
        "--seconds", type=float, default=Limits.seconds, help="a call may take (default %(default)g)"
    )
    command.add_argument("--memory", type=float, default=Limits.memory, help="GB (default %(default)g)")
    command.add_argument("--jobs", type=int, default=jobs_here(), help="at once (default here %(default)d)")
    command.set_defaults(run=command_grade)

    command = commands.add_parser("check", help="run the tests that your own notebook shows")
    command.add_argument("notebook", type=Path)
    command.set_defaults(run=command_check)
    return parser


def command_release(options: argparse.Namespace) -> int:
    assignment = find(options.name, options.source, options.year)
    path = options.out / options.name / f"{options.name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(release(assignment), path)
    print(f"For the students: {path}")
    return 0


def command_grade(options: argparse.Namespace) -> int:
    assignment = find(options.name, options.source, options.year, options.hidden)
    if not options.no_sandbox:
        check_sandbox()
    submissions = collect(options.submissions)
    limits = Limits(seconds=options.seconds, memory=options.memory)
    graded = {}
    with compiled_folder() as compiled:
        rehearse(assignment, limits, compiled)
        limits = limits if options.no_sandbox else replace(limits, compiled=compiled)
        jobs = max(1, options.jobs)
        for submission, result in grade_all(assignment, submissions, limits, not options.no_sandbox, jobs):
            points = "-" if result.total is None else f"{result.total:g}"
            print(f"{submission.student:30} {points:>5}  {result.state[:100]}", flush=True)
            graded[submission.student] = (submission, result)
    write_report(assignment, [graded[submission.student] for submission in submissions], options.out)
    print(f"{len(graded)} submissions: {options.out / 'grades.csv'}")
    return 0


def command_check(options: argparse.Namespace) -> int:
    """A student's own notebook against the tests in it, in this process; Ctrl-C ends an endless loop."""
    notebook = nbformat.read(options.notebook, as_version=4)
    name = notebook.metadata.get("deeplab_edu", {}).get("assignment", options.notebook.stem)
    result = grade_notebook(Assignment(name, notebook), notebook, HereChannel)
    if result.reason:
        print(result.state)
        return 1
    for test, verdict in result.verdicts.items():
        print(f"{'ok  ' if not verdict.message else 'LOST'} {test}: {verdict.points:g} of {verdict.most:g}")
        print(
            "\n".join(f"     {line}" for line in verdict.message.splitlines()),
            end="\n" * bool(verdict.message),
        )
    for note in result.notes:
        print(f"note: {note}")
    print(
        "The tests you see pass; grading has more."
        if result.total == sum(v.most for v in result.verdicts.values())
        else ""
    )
    return int(any(verdict.message for verdict in result.verdicts.values()))


if __name__ == "__main__":
    sys.exit(main())
