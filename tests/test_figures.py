"""Figures: what is in the axes after drawing, and that drawing changes nothing that it was given."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from deeplab_edu import figures
from deeplab_edu.data.labels import IGNORE_COLOR, IGNORE_INDEX, SCENES, LabelSet
from deeplab_edu.figures import (
    SERIES,
    Step,
    add_class_legend,
    draw_boxes,
    draw_errors,
    draw_flow,
    draw_history,
    draw_image,
    draw_instances,
    draw_kernels,
    draw_labels,
    draw_lines,
    draw_map,
    draw_numbers,
    draw_overlay,
    draw_scores,
    draw_steps,
    draw_taps,
    use_style,
)
from deeplab_edu.training import History

TWO = LabelSet(("ground", "cat"), ((255, 255, 255), (0, 0, 200)))
MASK = np.array([[0, 1, 255], [1, 1, 0]], dtype=np.uint8)
IMAGE = np.arange(18, dtype=np.uint8).reshape(3, 2, 3)


@pytest.fixture
def ax():
    return Figure(layout="constrained").subplots()


def shown(ax) -> np.ndarray:
    """The array of the only picture in the axes."""
    (image,) = ax.images
    return np.asarray(image.get_array())


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def title(ax) -> str:
    return ax.get_title(loc="left") or ax.get_title()


def assert_bare(ax, text: str) -> None:
    assert title(ax) == text
    assert len(ax.get_xticks()) == len(ax.get_yticks()) == 0
    assert not any(spine.get_visible() for spine in ax.spines.values())


# --- pictures and label maps -----------------------------------------------------------------------


@pytest.mark.parametrize("image", [IMAGE, IMAGE.transpose(1, 2, 0), torch.from_numpy(IMAGE)])
def test_an_image_is_shown_as_it_is_in_either_layout(ax, image):
    assert draw_image(ax, image, "Scene") is ax
    np.testing.assert_array_equal(shown(ax), IMAGE.transpose(1, 2, 0))
    assert_bare(ax, "Scene")


def test_a_picture_three_pixels_high_is_not_turned(ax):
    high_three = np.zeros((3, 5, 3), np.uint8)
    high_three[0, 4] = 9
    draw_image(ax, high_three.transpose(2, 0, 1))
    np.testing.assert_array_equal(shown(ax), high_three)


def test_labels_are_shown_in_their_colors(ax):
    draw_labels(ax, MASK, TWO, "Labels")
    picture = shown(ax)
    assert tuple(picture[0, 0]) == (255, 255, 255)
    assert tuple(picture[0, 1]) == (0, 0, 200)
    assert tuple(picture[0, 2]) == IGNORE_COLOR
    assert_bare(ax, "Labels")


def test_an_overlay_mixes_picture_and_colors_by_hand(ax):
    image = np.full((3, 2, 3), 100, np.uint8)
    draw_overlay(ax, image, MASK, TWO, "Over", strength=0.25)
    np.testing.assert_allclose(shown(ax)[0, 1], (0.75 * 100 + 0.25 * np.array([0, 0, 200])) / 255)
    assert_bare(ax, "Over")


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_the_ends_of_an_overlay_are_picture_and_labels(ax, strength):
    image = np.full((3, 2, 3), 0.5)
    draw_overlay(ax, image, MASK, TWO, strength=strength)
    expected = TWO.colorize(MASK) / 255 if strength else image.transpose(1, 2, 0)
    np.testing.assert_allclose(shown(ax), expected)


def test_errors_tell_right_wrong_and_void_apart(ax):
    prediction = np.array([[0, 0, 1], [1, 1, 1]])
    draw_errors(ax, prediction, MASK, "Errors")
    picture = shown(ax)
    right, wrong, void = picture[0, 0], picture[0, 1], picture[0, 2]
    assert len({tuple(color) for color in (right, wrong, void)}) == 3
    assert to_hex(wrong / 255).upper() == SERIES[1]
    np.testing.assert_array_equal((picture == wrong).all(-1), [[0, 1, 0], [0, 0, 1]])
    assert_bare(ax, "Errors")


# --- numbers -----------------------------------------------------------------------------------------


def test_a_map_has_a_color_bar_and_spans_its_values(ax):
    draw_map(ax, [[1, 2], [3, 5]], "Map")
    assert ax.images[0].get_clim() == (1, 5)
    assert ax.images[0].get_cmap().name == "cividis"
    assert len(ax.figure.axes) == 2  # the second holds the colour bar
    assert_bare(ax, "Map")


def test_a_signed_map_has_zero_in_the_middle(ax):
    draw_map(ax, torch.tensor([[-1.0, 4.0]]), signed=True)
    assert ax.images[0].get_clim() == (-4, 4)
    assert ax.images[0].get_cmap().name == "PuOr"


def test_limits_of_a_map_can_be_given(ax):
    draw_map(ax, [[0.2, 0.3]], limits=(0, 1))
    assert ax.images[0].get_clim() == (0, 1)


def test_numbers_are_written_where_they_stand(ax):
    draw_numbers(ax, [[1, 2], [3, 40]], "Kernel", marked=[(1, 0)])
    assert texts(ax) == ["1", "2", "3", "40"]
    assert [text.get_position() for text in ax.texts] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    (frame,) = ax.patches
    assert frame.get_xy() == (-0.5, 0.5) and not frame.get_fill()
    assert_bare(ax, "Kernel")


def test_numbers_follow_their_format_and_a_row_is_a_matrix(ax):
    draw_numbers(ax, [0.25, 1.0], form=".2f")
    assert texts(ax) == ["0.25", "1.00"]
    assert shown(ax).shape == (1, 2)


@pytest.mark.parametrize("values", [[[0, 10]], [[-10, 10]], [[0.1, 0.9], [0.4, 0.6]], [[31, 38, 46]]])
def test_numbers_can_be_read_on_their_background(ax, values):
    """Written dark on light or light on dark: at least 3 : 1 of contrast, as WCAG asks of large text."""
    draw_numbers(ax, values)
    image = ax.images[0]
    for text, value in zip(ax.texts, np.ravel(values), strict=True):
        background = luminance(image.cmap(image.norm(value))[:3])
        ink = luminance(mpl.colors.to_rgb(text.get_color()))
        assert (max(background, ink) + 0.05) / (min(background, ink) + 0.05) >= 3


def luminance(rgb) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_a_matrix_of_zeros_can_be_drawn(ax):
    draw_numbers(ax, np.zeros((2, 2)))
    assert texts(ax) == ["0"] * 4


# --- boxes, legends, curves, scores ------------------------------------------------------------------


def test_boxes_frame_whole_pixels_and_carry_their_names(ax):
    draw_boxes(ax, {"star": (2, 10, 5, 20)})
    (frame,) = ax.patches
    assert (frame.get_xy(), frame.get_width(), frame.get_height()) == ((1.5, 9.5), 3, 10)
    assert texts(ax) == ["star"]
    assert ax.texts[0].get_position() == (2, 10)


def test_the_name_of_a_box_at_the_upper_edge_stays_inside(ax):
    draw_boxes(ax, {"sun": (0, 0, 4, 4)})
    assert ax.texts[0].get_position()[1] > 0


def test_the_legend_names_the_classes_that_occur_in_order(ax):
    add_class_legend(ax.figure, SCENES, [torch.tensor([[4, 0]]), np.array([[255, 1]])])
    (legend,) = ax.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["ground", "disc", "star"]
    faces = [patch.get_facecolor()[:3] for patch in legend.get_patches()]
    np.testing.assert_allclose(np.multiply(faces, 255), [SCENES.colors[i] for i in (0, 1, 4)])


def history(*loss: float) -> History:
    return History(Path("run"), steps=[10 * (i + 1) for i in range(len(loss))], loss=list(loss))


def test_histories_are_lines_with_names_and_units(ax):
    draw_history(ax, {"fcn32s": history(2, 1), "fcn8s": history(2, 0.5)}, "Loss")
    first, second = ax.lines
    np.testing.assert_array_equal(first.get_xydata(), [[10, 2], [20, 1]])
    np.testing.assert_array_equal(second.get_ydata(), [2, 0.5])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["fcn32s", "fcn8s"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("training step", "loss (mean cross-entropy)")
    assert ax.get_ylim()[0] == 0
    assert title(ax) == "Loss"


def test_one_history_without_a_name_needs_no_legend(ax):
    draw_history(ax, {"": history(1)})
    assert ax.get_legend() is None


def test_an_empty_set_of_histories_is_an_empty_plot(ax):
    draw_history(ax, {})
    assert not ax.lines


SCORES = {"32s": {"miou": [0.3, 0.5], "thin": [0.1, 0.1]}, "8s": {"miou": [0.6, 0.6], "thin": [0.2, 0.4]}}


def test_scores_are_bars_at_the_mean_and_a_dot_a_seed(ax):
    draw_scores(ax, SCORES, {"miou": "mIoU", "thin": "thin"}, "8s is ahead")
    heights = [[bar.get_height() for bar in arm] for arm in ax.containers]
    np.testing.assert_allclose(heights, [[40, 10], [60, 30]])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [30, 50])
    np.testing.assert_allclose(ax.lines[3].get_ydata(), [20, 40])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["mIoU", "thin"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["32s", "8s"]
    assert ax.get_ylabel() == "IoU, points"
    assert title(ax) == "8s is ahead"


def test_bars_of_one_metric_stand_around_its_tick(ax):
    draw_scores(ax, SCORES, {"thin": "thin"})
    centers = [arm[0].get_x() + arm[0].get_width() / 2 for arm in ax.containers]
    assert np.mean(centers) == pytest.approx(0)
    assert centers[1] - centers[0] > ax.containers[0][0].get_width()  # a gap between them


def test_steps_lead_from_one_to_the_next(ax):
    draw_steps(ax, [Step("FCN", "skips", "coarse"), Step("v1", "holes", "not shown", there=False)], "Map")
    assert [text for text in texts(ax) if text] == ["FCN", "skips", "coarse", "v1", "holes"]
    first, second = ax.patches
    assert first.get_y() < second.get_y() and ax.yaxis_inverted()
    assert (first.get_linestyle(), second.get_linestyle()) == ("-", "--")
    assert_bare(ax, "Map")


# --- all of them ---------------------------------------------------------------------------------------

values = hnp.arrays(np.float64, (3, 4), elements=st.floats(-1e6, 1e6))
masks = hnp.arrays(np.uint8, (3, 4), elements=st.sampled_from([0, 1, IGNORE_INDEX]))


@settings(max_examples=10, deadline=None)  # each draws seven axes
@given(values=values, mask=masks, other=masks)
def test_drawing_changes_none_of_its_inputs(values, mask, other):
    image = np.abs(values[None].repeat(3, 0)) % 1
    copies = [array.copy() for array in (values, mask, other, image)]
    axes = Figure().subplots(2, 4).ravel()
    draw_image(axes[0], image)
    draw_labels(axes[1], mask, TWO)
    draw_overlay(axes[2], image, mask, TWO)
    draw_errors(axes[3], other, mask)
    draw_map(axes[4], values)
    draw_map(axes[5], values, signed=True)
    draw_numbers(axes[6], values)
    for array, copy in zip((values, mask, other, image), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_drawing_leaves_pyplot_alone(ax):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    draw_map(ax, [[1, 2]])
    draw_history(ax, {"a": history(1, 2)})
    assert plt.get_fignums() == before


def test_every_draw_function_is_tested_here():
    drawn = {name for name in vars(figures) if name.startswith("draw_")}
    tests = Path(__file__).read_text()
    assert not {name for name in drawn if f"{name}(" not in tests}


def test_the_style_sets_the_defaults():
    with mpl.rc_context():
        use_style()
        assert mpl.rcParams["figure.dpi"] == 80
        assert mpl.rcParams["image.cmap"] == "cividis"
        assert [entry["color"] for entry in mpl.rcParams["axes.prop_cycle"]] == list(SERIES)


def test_instances_of_one_class_that_touch_stay_apart(ax):
    numbers = np.array([[1, 1, 2, 2, 2], [1, 1, 2, 2, 2], [0, 0, 0, 0, 0]])
    drawn = draw_instances(ax, numbers, "two").images[0].get_array()
    assert tuple(drawn[0, 0]) != tuple(drawn[0, 3])
    assert tuple(drawn[0, 1]) == (255, 255, 255), "a white edge lies between them, in the object behind"
    assert tuple(drawn[2, 0]) == (240, 240, 240)


def test_lines_are_named_and_hold_what_was_given(ax):
    draw_lines(ax, {"a": ([1, 2], [0.5, 0.6]), "b": ([1, 2], [0.4, 0.7])}, "width, px", "IoU", "t")
    assert [line.get_ydata().tolist() for line in ax.lines] == [[0.5, 0.6], [0.4, 0.7]]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("width, px", "IoU")
    assert len({line.get_linestyle() for line in ax.lines}) == 2, "colour is not the only sign"


def test_a_single_line_needs_no_legend(ax):
    assert draw_lines(ax, {"": ([1], [1])}, "x", "y").get_legend() is None


@pytest.mark.parametrize(
    ("layers", "pixels"),
    [
        ([(3, 1, 1), (3, 1, 1)], [-2, -1, 0, 1, 2]),
        ([(3, 1, 1), (3, 1, 2)], [-3, -2, -1, 0, 1, 2, 3]),
        ([(3, 1, 2), (3, 1, 2)], [-4, -2, 0, 2, 4]),  # gaps: dilation alone skips pixels
        ([(2, 2, 1), (3, 1, 1)], [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]),
    ],
)
def test_taps_end_at_the_pixels_that_are_seen(ax, layers, pixels):
    drawn = draw_taps(ax, layers)
    assert drawn.lines[-1].get_xdata().tolist() == pixels
    assert [t.get_text() for t in drawn.get_yticklabels()] == ["pixels", "layer 1", "layer 2"]


def test_flow_has_a_box_for_each_name_and_an_arrow_for_each_pair(ax):
    draw_flow(ax, {"a": (0, 0), "b": (2, 0), "c": (2, 1)}, [("a", "b"), ("b", "c")], "flow")
    assert texts(ax) == ["a", "b", "c", "", ""]
    assert [t.get_position() for t in ax.texts[:3]] == [(0, 0), (2, 0), (2, 1)]
    assert [(arrow.xyann, arrow.xy) for arrow in ax.texts[3:]] == [((0, 0), (2, 0)), ((2, 0), (2, 1))]
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    assert left < 0 and right > 2 and low < 0 and high > 1


def test_kernels_lie_where_their_taps_read(ax):
    draw_kernels(ax, np.zeros((40, 60, 3), np.uint8), (20, 30), (1, 3), stride=8, margin=6, title="two rates")
    near, far = ax.lines
    assert sorted(map(tuple, near.get_xydata())) == [(x, y) for x in (22, 30, 38) for y in (12, 20, 28)]
    assert sorted(map(tuple, far.get_xydata())) == [(x, y) for x in (6, 30, 54) for y in (-4, 20, 44)]
    assert [line.get_label() for line in ax.lines] == ["rate 1", "rate 3"]
    assert (ax.get_xlim(), ax.get_ylim()) == ((-6.5, 65.5), (45.5, -6.5))  # rows downwards, as in the picture
