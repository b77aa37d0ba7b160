"""What moves: live displays in a notebook, wired around the pure functions of `figures`."""

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt

from deeplab_edu.figures import draw_history
from deeplab_edu.training import History


def live_curve(title: str, *, quiet: bool = False) -> Callable[[History], None] | None:
    """A loss curve that grows while `fit` trains: pass it as `watch`. None outside a notebook, or if `quiet`.

    When the run ends, the finished curve stays in the notebook as a picture.
    """
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        return None
    if quiet or get_ipython() is None:
        return None
    shown: list[
        Any
    ] = []  # figure, axes and display, made at the first call: a run that is loaded draws nothing

    def update(history: History) -> None:
        if not shown:
            figure, ax = plt.subplots(figsize=(5, 2.4), layout="constrained")
            plt.close(figure)  # else the notebook shows it a second time at the end of the cell
            shown.extend([figure, ax, display(figure, display_id=True)])
        figure, ax, handle = shown
        ax.clear()
        draw_history(ax, {"": history}, f"{title}: step {history.steps[-1]}, loss {history.loss[-1]:.2f}")
        handle.update(figure)

    return update
