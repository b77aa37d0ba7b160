"""Assignments: release the students' version, check one's own work, grade a class.

    python -m deeplab_edu.classroom release a1_metrics handout/
    python -m deeplab_edu.classroom grade   a1_metrics submissions/ graded/
    python -m deeplab_edu.classroom check   my_a1_metrics.ipynb

`assignment` reads the notebooks under notebooks/assignments/source, `sandbox` contains a submission's code, which
`worker` runs, `grading` tests it from outside, `batch` does so for a class, `submissions` reads what students hand in,
`report` writes results.
"""
