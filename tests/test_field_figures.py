"""Figures of fields: what is in the axes, over the whole grid of values that the explorers' controls can take."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from deeplab_edu import field_figures
from deeplab_edu.cost import Cost
from deeplab_edu.field_figures import (
    Box,
    draw_costs,
    draw_field,
    draw_tap_grid,
    draw_units,
    draw_weights,
    largest_gap,
    stack_counts,
    tinted,
    weight_places,
)
from deeplab_edu.figures import SERIES, draw_taps
from deeplab_edu.receptive_field import valid_weights

GREY = np.full((3, 12, 16), 128, np.uint8)


@pytest.fixture
def ax():
    return Figure().subplots()


def title(ax) -> str:
    return ax.get_title(loc="left") or ax.get_title()


def paths(layers) -> np.ndarray:
    """Along one axis: the product of polynomials whose exponents are pixels."""
    counts, jump = np.ones(1, dtype=int), 1
    for kernel, stride, rate in layers:
        comb = np.zeros((kernel - 1) * rate * jump + 1, dtype=int)
        comb[:: rate * jump] = 1
        counts, jump = np.convolve(counts, comb), jump * stride
    return counts


STACKS = [
    [(kernel, stride, rate) for rate in rates]
    for kernel, stride, rates in product(
        (2, 3, 4, 5), (1, 2), [(12,), (12, 12), (1, 2, 5), (12, 1, 7), (1, 2, 4, 8)]
    )
]


@pytest.mark.parametrize("layers", STACKS, ids=str)
def test_tree_and_grid_show_the_same_pixels(layers):
    along = paths(layers)
    counts = stack_counts(layers)
    assert np.array_equal(counts, np.outer(along, along))
    tree, grid = Figure().subplots(1, 2)
    seen = draw_taps(tree, layers).lines[-1].get_xdata()
    middle = (len(along) - 1) / 2
    assert (seen + middle).tolist() == along.nonzero()[0].tolist()
    shown = draw_tap_grid(grid, counts, "grid").images[0].get_array()
    assert np.array_equal(np.ma.filled(shown > 0, False), counts > 0) and title(grid) == "grid"


@pytest.mark.parametrize("layers", [[(5, 2, 12)] * 4, [(5, 1, 12)] * 4, [(5, 1, 1)] * 4], ids=str)
def test_the_largest_stacks_of_the_explorer(layers, ax):
    along = paths(layers)
    assert (
        draw_taps(ax, layers).lines[-1].get_xdata().tolist()
        == (along.nonzero()[0] - (len(along) - 1) / 2).tolist()
    )
    assert len(ax.collections) == 4, "one collection of lines a layer: a line an artist would take seconds"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=3).map(sorted))
def test_the_criterion_is_right_where_rates_start_at_one_and_never_fall(rates):
    rates = [1, *rates]
    full = bool((stack_counts([(3, 1, rate) for rate in rates]) > 0).all())
    assert (largest_gap(rates) <= 3) == full


@pytest.mark.parametrize(
    ("rates", "gap"),
    [((2, 2, 2), 2), ((1, 2, 3), 2), ((1, 2, 5), 2), ((1, 2, 9), 5), ((2, 4, 8), 4), ((3, 1), 1)],
)
def test_the_criterion_by_wang(rates, gap):
    assert largest_gap(rates) == gap


def test_tints_say_what_is_read_and_what_matters():
    taps, field = np.zeros((12, 16), bool), np.zeros((12, 16))
    taps[3:6], field[4, 4], field[4, 5] = True, 4.0, 1.0
    shown = tinted(GREY, taps, field)
    unread, read, summit, half = shown[0, 0], shown[3, 0], shown[4, 4], shown[4, 5]
    assert np.ptp(unread) < 1e-9, "grey"
    assert read[2] > read[0] + 0.1, "blue"
    np.testing.assert_allclose(summit, 0.1 * read + 0.9 * np.array(to_rgb(SERIES[1])), atol=1e-9)
    np.testing.assert_allclose(half, 0.55 * read + 0.45 * np.array(to_rgb(SERIES[1])), atol=1e-9)
    assert np.array_equal(tinted(GREY / 255.0), tinted(GREY)), "either range"
    assert np.isfinite(tinted(GREY, field=np.zeros((12, 16)))).all(), "a unit that nothing moves"


@pytest.mark.parametrize("dark", [0, 255])
def test_the_two_tints_differ_in_lightness_on_any_picture(dark):
    """So that they can be told apart without colour."""
    ones = np.ones((12, 16))
    picture = np.full((3, 12, 16), dark, np.uint8)
    plain, read, matters = (
        tinted(picture, *given)[0, 0] @ [0.2126, 0.7152, 0.0722] for given in ((), (ones,), (ones, ones))
    )
    assert plain - read > 0.05 and read - matters > 0.05


@pytest.mark.parametrize("margin", [0, 5])
def test_a_field_has_its_box_its_unit_and_room_for_padding(ax, margin):
    box = Box(-2, 3, 7, 9)
    draw_field(ax, GREY, np.ones((12, 16)), box=box, unit=(1, 7), margin=margin, title="F")
    for frame in ax.patches:
        assert (frame.get_xy(), frame.get_width(), frame.get_height()) == ((2.5, -2.5), 9, 7)
    assert [line.get_xydata().tolist() for line in ax.lines] == [[[7, 1]]] * 2
    assert ax.get_xlim() == (-0.5 - margin, 15.5 + margin)
    assert ax.get_ylim() == (11.5 + margin, -0.5 - margin)
    assert title(ax) == "F"


def test_a_field_of_nothing_is_the_picture(ax):
    draw_field(ax, GREY)
    assert not ax.patches and not ax.lines


def test_a_picture_at_a_third_keeps_its_pixels_places(ax):
    draw_field(ax, GREY, unit=(10, 20), scale=3, margin=1)
    assert ax.get_xlim() == (-1.5, 48.5) and ax.get_ylim() == (36.5, -1.5)
    assert tuple(ax.images[0].get_extent()) == (-0.5, 47.5, 35.5, -0.5)


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("rate", [1, 3, 6, 18, 36])
def test_weights_on_the_map_are_counted_as_by_valid_weights(ax, stride, rate):
    units = 513 // stride + 1
    for unit in ((0, 0), (units // 2, units // 2), (units - 1, 3)):
        center = unit[0] * stride, unit[1] * stride
        valid = draw_weights(ax, weight_places(center, rate * stride), (513, 513), 128)
        assert valid == valid_weights((units, units), rate)[unit]
        rings, crosses = ax.lines[-2:]
        assert (len(rings.get_xdata()), len(crosses.get_xdata())) == (valid, 9 - valid)
        assert all(-128 <= n < 641 for line in (rings, crosses) for n in line.get_xydata().ravel())


@pytest.mark.parametrize("side", [257, 321, 513, 769])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_units_lie_on_every_stride_th_pixel(ax, side, stride):
    draw_units(ax, np.zeros((side, side, 3), np.uint8), stride, "units")
    below, above = ax.lines
    expected = [(x, y) for y in range(0, side, stride) for x in range(0, side, stride)]
    assert above.get_xydata().tolist() == below.get_xydata().tolist() == [list(p) for p in expected]
    assert title(ax) == "units"


def test_costs_are_multiples_of_the_first(ax):
    costs = {"a": Cost(2 * 10**9, 2**20), "b": Cost(6 * 10**9, 2**21)}
    draw_costs(ax, costs, "b", "Costs")
    assert [bar.get_width() for bar in ax.patches] == [1, 3, 1, 2]
    assert [t.get_text() for t in ax.texts] == ["2 GFLOP", "6 GFLOP", "1 MiB", "2 MiB"]
    assert [t.get_weight() for t in ax.texts] == ["normal", "bold"] * 2
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"] and title(ax) == "Costs"


def test_every_draw_function_is_tested_here():
    drawn = {name for name, value in vars(field_figures).items() if name.startswith("draw_")}
    assert not {name for name in drawn if f"{name}(" not in Path(__file__).read_text()}


def test_drawing_changes_none_of_its_inputs(ax):
    taps, field = torch.zeros(12, 16, dtype=torch.bool), torch.rand(12, 16)
    image, copies = torch.from_numpy(GREY.copy()), (taps.clone(), field.clone())
    draw_field(ax, image, taps, field=field, unit=(0, 0))
    assert np.array_equal(image, GREY) and torch.equal(taps, copies[0]) and torch.equal(field, copies[1])
