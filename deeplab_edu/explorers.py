"""What moves: live displays in a notebook, wired around the pure functions of `figures`."""

from collections.abc import Callable

import matplotlib.pyplot as plt

from deeplab_edu.figures import draw_history
from deeplab_edu.training import History


def live_curve(title: str) -> Callable[[History], None] | None:
    """A loss curve that grows while `fit` trains: pass it as `on_epoch`. None outside a notebook.

    When the run ends, the finished curve stays in the notebook as a picture.
    """
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        return None
    if get_ipython() is None:
        return None
    figure, ax = plt.subplots(figsize=(5, 2.4), layout="constrained")
    handle = display(figure, display_id=True)
    plt.close(figure)  # else the notebook shows it a second time at the end of the cell

    def update(history: History) -> None:
        ax.clear()
        draw_history(ax, {"": history}, f"{title}: step {history.steps[-1]}, loss {history.loss[-1]:.2f}")
        handle.update(figure)

    return update
