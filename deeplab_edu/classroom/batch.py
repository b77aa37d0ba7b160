"""Grade many submissions, several at once, each by a process of its own: whatever one of them does to the process that
grades it, the others get their grades.
"""

import logging
import multiprocessing
import os
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from typing import Any

from .assignment import Assignment, AssignmentError
from .grading import START_SECONDS, ProcessChannel, Result, grade_notebook
from .sandbox import Limits
from .submissions import Submission, Unreadable

SPARE_SECONDS = (
    2 * START_SECONDS
)  # beyond a submission's own limit, for starts of processes and for the tests


def jobs_here() -> int:
    """Submissions to grade at once: one a core and one for each 4 GB of memory (each may use 2), at most four."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 4e9
    return max(1, min(cores, int(memory // 3.8e9), 4))


def rehearse(assignment: Assignment, limits: Limits, compiled: str) -> None:
    """Grade the assignment's own solution first, outside the sandbox, and leave what Python compiles in `compiled`.

    Raises:
        AssignmentError: it loses points, so every student would: a hidden test of the teacher's is wrong, or a limit is
            too tight for this machine.
    """
    own = replace(limits, compiled=compiled)
    result = grade_notebook(assignment, assignment.notebook, lambda: ProcessChannel(own, False), own)
    wrong = [f"{test}: {v.message}" for test, v in result.verdicts.items() if v.message] or result.reason
    if wrong:
        raise AssignmentError(
            f"The solution of {assignment.name} itself loses points, so nothing was graded. Mend the tests, or allow "
            f"more (--seconds, --memory). {' | '.join(wrong) if isinstance(wrong, list) else wrong}"
        )


def grade_all(
    assignment: Assignment, submissions: Sequence[Submission], limits: Limits, contained: bool, jobs: int
) -> Iterator[tuple[Submission, Result]]:
    """Results as they come, with `jobs` submissions at a time."""
    ways = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in ways else "spawn")
    if "forkserver" in ways:
        context.set_forkserver_preload(["torch", __name__])  # so that each process has it at once
    waiting = deque(submissions)
    running: dict[Any, tuple[Submission, Any, int, float]] = {}  # by the end of its pipe
    free = [*range(jobs)]
    try:
        while waiting or running:
            while waiting and free:
                submission, place = waiting.popleft(), free.pop()
                own = replace(limits, user=limits.user + place % 8)
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(
                    target=_grade, args=(theirs, assignment, submission, own, contained)
                )
                process.start()
                theirs.close()
                running[ours] = (submission, process, place, time.monotonic() + limits.total + SPARE_SECONDS)
            ready = wait([*running], timeout=1)
            late = [pipe for pipe, (*_, end) in running.items() if time.monotonic() > end]
            for pipe in {*ready, *late}:
                submission, process, place, _ = running.pop(pipe)
                free.append(place)
                yield submission, _result(pipe, process, submission, pipe in ready)
    finally:
        for _, process, *_ in running.values():
            process.kill()


def _result(pipe: Any, process: Any, submission: Submission, ready: bool) -> Result:
    """What a process found out, or what became of it."""
    try:
        result = pipe.recv() if ready else None
    except EOFError:
        result = None
    process.join(5 if ready else 0)
    if result is None:
        process.kill()
        process.join()
        how = f"it ended with {process.exitcode}" if ready else "it took too long"
        result = Result(submission.student, reason=f"the grader's process failed ({how}); look at it by hand")
    pipe.close()
    return result


def _grade(
    pipe: Any, assignment: Assignment, submission: Submission, limits: Limits, contained: bool
) -> None:
    """In a process of its own, which says nothing: nbformat would print parts of what it finds odd."""
    import torch

    warnings.simplefilter("ignore")
    logging.disable()
    torch.set_num_threads(1)
    pipe.send(grade_submission(assignment, submission, limits, contained))


def grade_submission(
    assignment: Assignment, submission: Submission, limits: Limits, contained: bool
) -> Result:
    """Grade one submission. Whatever is wrong with it ends up in its own result."""
    try:
        notebook = submission.notebook(assignment)
    except Unreadable as problem:
        return Result(submission.student, reason=str(problem))
    try:
        return grade_notebook(
            assignment, notebook, lambda: ProcessChannel(limits, contained), limits, submission.student
        )
    except Exception as error:  # a defect of ours: the others must not pay for it
        return Result(submission.student, reason=f"the grader failed ({type(error).__name__}: {error})")
