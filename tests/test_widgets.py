"""Explorers without a browser: their controls moved by hand, over the grid of their values; what a notebook keeps."""

import base64
import io
import threading
import time
from datetime import UTC, datetime

import nbformat
import numpy as np
import pytest
import torch
from matplotlib.cbook import get_sample_data
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image

import notebooks as tool
from deeplab_edu import explorers
from deeplab_edu.explorers import (
    STACKS,
    Lens,
    as_picture,
    explore_aspp,
    explore_field,
    explore_output_stride,
    explore_taps,
    photograph,
)
from deeplab_edu.models import build_model
from deeplab_edu.receptive_field import effective_field, tap_map, valid_weights
from deeplab_edu.widgets import ClickImage, Panel, slider


def controls(panel) -> dict:
    return {control.description: control for control in panel.children[0].children}


def size_of(png: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(png)).size


# --- parts -------------------------------------------------------------------------------------------------


def test_a_picked_pixel_stays_inside():
    picture = ClickImage(extent=[5, 9])
    picture.pixel = [-3, 40]
    assert picture.pixel == [0, 8]


def test_the_area_is_where_the_pixels_are():
    """A picture of one dark pixel: the area says where in the PNG it lies."""
    picture, image = ClickImage(extent=[6, 8]), np.full((6, 8), 255)
    image[4, 1] = 0
    picture.show(
        "dark", (4, 4), lambda ax: ax.imshow(image, cmap="gray", vmin=0, vmax=255) and ax.axis("off")
    )
    png = np.asarray(Image.open(io.BytesIO(picture.png)).convert("L")) < 30
    left, top, width, height = picture.area
    rows, columns = png.shape
    dark = png[
        round(rows * (top + height * 4 / 6)) : round(rows * (top + height * 5 / 6)),
        round(columns * (left + width * 1 / 8)) : round(columns * (left + width * 2 / 8)),
    ]
    assert dark[2:-2, 2:-2].all() and png.sum() < 1.2 * dark.size
    assert picture.alt == "dark"


def test_a_picture_without_an_extent_cannot_be_picked_in():
    picture = ClickImage()
    picture.show("", (1, 1), lambda ax: None)
    assert picture.area == []


def test_a_panel_redraws_once_for_a_change_and_not_for_its_own():
    calls = []
    first, second = slider("a", 1, 0, 9), slider("b", 0, 0, 9)
    picture = ClickImage()

    def redraw():
        calls.append(first.value)
        second.value = first.value
        picture.show("p", (1, 1), lambda ax: None)
        return "drawn"

    panel = Panel([first, second], [picture], redraw)
    first.value = 7
    assert calls == [1, 7] and second.value == 7 and panel.line.value == "drawn"


def test_two_threads_draw_one_after_the_other():
    """JupyterLab's events come in another thread than its cells; none may be lost or meet another."""
    inside, met, drawn = [], [], []
    knob = slider("a", 0, 0, 99)

    def redraw():
        met.extend(inside)
        inside.append(1)
        time.sleep(0.02)
        drawn.append(knob.value)
        inside.pop()
        return str(knob.value)

    panel = Panel([knob], [], redraw)
    threads = [threading.Thread(target=panel.update) for _ in range(5)]
    for thread in threads:
        thread.start()
    knob.value = 7
    for thread in threads:
        thread.join()
    assert not met and len(drawn) == 7 and panel.line.value == "7"


def test_an_error_of_the_reader_is_said_and_goes_away():
    knob = slider("a", 1, 0, 9)

    def redraw():
        if knob.value == 3:
            raise ValueError("no <three>")
        return "fine"

    panel = Panel([knob], [], redraw)
    knob.value = 3
    assert "no &lt;three&gt;" in panel.line.value
    knob.value = 4
    assert panel.line.value == "fine"


def test_an_explorer_brings_a_still_picture_of_all_its_pictures():
    panel = explore_taps()
    bundle = panel._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert base64.b64decode(data["image/png"]) == panel.still()
    widths = [size_of(picture.png)[0] for picture in panel.pictures]
    assert size_of(panel.still())[0] == round(sum(widths) * 72 / 96) and widths[0] > 300
    assert data["text/plain"].startswith("An explorer; run this cell to use it. Lines from a unit")
    assert "application/vnd.jupyter.widget-view+json" in data


def test_a_saved_notebook_keeps_the_picture_and_not_the_widget():
    data = {tool.hygiene.WIDGET_VIEW: {"model_id": "1"}, "text/plain": "An explorer"}
    png = base64.b64encode(explore_taps().still()).decode()
    outputs = [
        new_output("display_data", data=data),
        new_output("display_data", data={**data, "image/png": png}),
    ]
    notebook = new_notebook(cells=[new_code_cell("x", outputs=outputs, execution_count=1)])
    tool.clean(notebook)
    (kept,) = notebook.cells[0].outputs
    assert set(kept.data) == {"text/plain", "image/png"}
    nbformat.validate(notebook)


def test_the_browser_gets_its_code_from_the_package():
    code = (ClickImage._esm, ClickImage._css)
    assert not any("http" in str(part) or "import(" in str(part) for part in code)


# --- a stack of convolutions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("rates", [(1,), (12, 1), (2, 2, 2), (1, 2, 4, 8)], ids=str)
def test_taps_for_the_grid_of_controls(kernel, stride, rates):
    panel = explore_taps(rates, kernel, stride)
    chain = torch.nn.Sequential(*[torch.nn.Conv2d(1, 1, kernel, stride, dilation=r) for r in rates])
    side = next(n for n in range(1, 800) if n > 1 and fits(chain, n))
    seen = int(tap_map(chain, (side, side), (0, 0)).sum())
    assert f"reads {seen:,} of the {side**2:,} pixels of its {side} x {side} window" in panel.line.value
    assert ("criterion" in panel.line.value) == (stride == 1 and len(rates) > 1)


def fits(chain, side: int) -> bool:
    """Whether `side` pixels are just enough for one unit."""
    reach, jump = 1, 1
    for layer in chain:
        reach, jump = reach + (layer.kernel_size[0] - 1) * layer.dilation[0] * jump, jump * layer.stride[0]
    return side == reach


@pytest.mark.parametrize("name", [name for name in STACKS if STACKS[name]])
def test_a_preset_sets_the_rates_and_a_rate_leaves_the_preset(name):
    panel = explore_taps((3, 3, 3, 3))
    knobs = controls(panel)
    assert knobs["rates"].value == "your own"
    knobs["rates"].value = name
    assert [knobs[f"rate, layer {i}"].value for i in (1, 2, 3)] == list(STACKS[name])
    assert knobs["layers"].value == 3 and knobs["rate, layer 4"].disabled
    knobs["rate, layer 2"].value = 11
    assert knobs["rates"].value == "your own"
    assert [knobs[f"rate, layer {i}"].value for i in (1, 3)] == list(STACKS[name])[::2]


def test_the_criterion_is_held_against_what_is_the_case():
    assert "(2 &le; 3) says no holes, which is <b>wrong</b>" in explore_taps((2, 2, 2)).line.value
    assert "(2 &le; 3) says no holes, which is right" in explore_taps((1, 2, 5)).line.value
    assert "(5 &gt; 3) says holes, which is right" in explore_taps((1, 2, 9)).line.value


# --- a pixel of a picture --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    with torch.device("meta"):
        bare = build_model("deeplab_v1", 3, backbone="tiny")
    real = build_model("fcn32s", 3, backbone="tiny", width=4)
    return {"FCN-32s": (real, "score_fr"), "DeepLab v1": (bare, "score"), "out": real}


@pytest.mark.parametrize("pixel", [(0, 0), (40, 13), (64, 64), (0, 64)])
def test_a_clicked_pixel_in_three_models(models, pixel):
    panel = explore_field(models, size=65)
    panel.pictures[1].pixel = list(pixel)
    assert [view.pixel for view in panel.pictures] == [list(pixel)] * 3
    for name, (model, layer) in (("FCN-32s", models["FCN-32s"]), ("out", (models["out"], None))):
        unit = Lens(model, (65, 65), layer).unit_at(pixel)
        seen = int(tap_map(model, (65, 65), unit, layer).sum())
        assert f"<b>{name}</b>: window " in panel.line.value
        assert f"reads {seen:,} of the picture's 4,225 pixels" in panel.line.value
    assert "239 x 239 px" in panel.line.value and "no effective field without weights" in panel.line.value


def test_the_unit_is_the_one_whose_window_is_centred_nearest():
    lens = Lens(torch.nn.Sequential(torch.nn.Conv2d(3, 1, 3, 4)), (17, 17))  # centres 1, 5, 9, 13
    assert [lens.unit_at((row, 0))[0] for row in (0, 1, 2, 4, 8, 12, 16)] == [0, 0, 0, 1, 2, 3, 3]


def test_where_units_differ_the_box_is_around_what_is_read():
    up = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 1, 4), torch.nn.Upsample(size=(17, 17), mode="bilinear"))
    lens = Lens(up, (17, 17))
    unit = lens.unit_at((5, 9))
    taps = lens.graph.tap_map(unit)
    box = lens.box(unit, taps)
    assert unit == (5, 9)
    assert taps[box.top : box.top + box.rows, box.left : box.left + box.columns].sum() == taps.sum() > 0
    assert taps[box.top].any() and taps[:, box.left].any()


def test_the_effective_field_is_that_of_the_normalised_picture(models):
    model, layer = models["FCN-32s"]
    picture = photograph(65)
    found = Lens(model, (65, 65), layer).effective(picture, (1, 1))
    mean, std = (torch.tensor(n)[:, None, None] for n in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = effective_field(model, ((picture / 255 - mean) / std)[None], (1, 1), layer)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("tick", ["pixels that are read", "effective field", "theoretical window"])
def test_each_tick_takes_something_away(tick):
    small = torch.nn.Sequential(
        torch.nn.Conv2d(3, 2, 3, padding=4, dilation=4), torch.nn.Conv2d(2, 1, 5, padding=2)
    )
    panel = explore_field({"small": small}, size=65, pixel=(60, 60))
    before = panel.pictures[0].png
    controls(panel)[tick].value = False
    without = panel.pictures[0].png
    assert without != before
    controls(panel)[tick].value = True
    assert panel.pictures[0].png == before


def uploaded(content: bytes) -> tuple:
    file = {"name": "p", "type": "image/png", "size": len(content), "content": memoryview(content)}
    return ({**file, "last_modified": datetime(2026, 1, 1, tzinfo=UTC)},)


def test_a_picture_of_ones_own(models):
    panel = explore_field({"FCN-32s": models["FCN-32s"]}, size=65)
    before, buffer = panel.pictures[0].png, io.BytesIO()
    Image.new("RGBA", (40, 90), (200, 10, 10, 255)).save(buffer, "PNG")
    upload = panel.children[0].children[-1]
    upload.value = uploaded(buffer.getvalue())
    assert panel.pictures[0].png != before and panel.line.value.startswith("Pixel (row 32")
    after = panel.pictures[0].png
    upload.value = uploaded(b"no picture")
    assert "this file is no picture that can be read; choose a JPEG or PNG" in panel.line.value
    assert panel.pictures[0].png == after
    panel.pictures[0].pixel = [3, 3]
    assert "row 3" in panel.line.value, "the bad file is forgotten"


def test_a_picture_is_turned_as_its_camera_says_and_cut_to_its_middle():
    wide = Image.new("RGB", (30, 10), "black")
    wide.paste("white", (10, 0, 20, 10))
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    wide.save(buffer, "PNG", exif=exif)
    picture = as_picture(buffer.getvalue(), 10)
    assert picture.shape == (3, 10, 10) and picture.dtype == torch.uint8 and picture.min() > 200


def test_the_photograph_is_the_one_of_matplotlib():
    original = Image.open(get_sample_data("grace_hopper.jpg"))
    assert photograph(64).shape == (3, 64, 64)
    assert abs(photograph(64).float().mean() - np.asarray(original)[:512].mean()) < 12


# --- ASPP and output stride ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def aspp():
    return explore_aspp(size=129)


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("rates", list(explorers.RATES))
def test_branches_for_the_grid_of_controls(aspp, stride, rates):
    knobs = controls(aspp)
    knobs["output stride"].value, knobs["rates"].value = stride, rates
    aspp.pictures[4].pixel = [20, 100]
    units = 128 // stride + 1
    unit = round(20 / stride), min(round(100 / stride), units - 1)
    assert f"a map of {units} x {units} units" in aspp.line.value
    used = [max(1, rate * 16 // stride) for rate in explorers.RATES[rates]]
    for rate, view in zip(used, aspp.pictures[1:4]):
        valid = int(valid_weights((units, units), rate)[unit])
        assert view.alt.endswith(f": rate {rate}: {valid} of 9 weights")
    assert aspp.pictures[0].alt.endswith("1x1: one weight")
    assert aspp.pictures[4].alt.endswith("image mean: every pixel")
    assert {view.step for view in aspp.pictures} == {stride}


def test_the_rates_are_those_of_the_model():
    model = explorers.deeplab_v3(8, (6, 12, 18))
    convs = [branch[0].dilation[0] for branch in model.head.branches]
    assert [
        1 if r == 0 else r for r in list(explorers.Branches(8, (6, 12, 18), 65).rates.values())[:4]
    ] == convs


def test_costs_of_output_strides():
    panel = explore_output_stride(
        lambda s: build_model("deeplab_v3", 3, backbone="tiny", width=4, output_stride=s)
    )
    knobs = controls(panel)
    for stride in (8, 16, 32):
        knobs["output stride"].value = stride
        for side in (257, 769):
            knobs["image side, px"].value = side
            units = -(-side // stride)
            assert (
                panel.pictures[0].alt == f"stride {stride}: {units} x {units} units on {side} x {side} pixels"
            )
    assert "(1.0 times stride 32)" in panel.line.value
    knobs["output stride"].value = 8
    model = build_model("deeplab_v3", 3, backbone="tiny", width=4, output_stride=8)
    found = explorers.cost(model, (769, 769))
    assert f"training keeps {found.kept_bytes / 2**20:,.0f} MiB an image" in panel.line.value
