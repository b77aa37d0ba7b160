"""Every explorer in a real JupyterLab: by mouse, by keys (one's own photograph: test_photograph.py), 200 random events.

Screenshots before and after an interaction, 1200 and 800 pixels wide, are kept in build/screenshots.
"""

import html
import random
import re
import time
from pathlib import Path

import pytest
from PIL import Image

from deeplab_edu import explorers

SHOTS = Path(__file__).resolve().parents[2] / "build" / "screenshots"

pytestmark = pytest.mark.required_in_ci

START = """
import torch
from torch.nn import functional as F
from deeplab_edu.crf import DenseCRF
from deeplab_edu.data.scenes import SceneDataset
from deeplab_edu.explorers import *
from deeplab_edu.models import build_model
torch.set_num_threads(1)
torch.manual_seed(0)
models = {
    "FCN-32s": (build_model("fcn32s", 12, backbone="tiny"), "score_fr"),
    "DeepLab v1": (build_model("deeplab_v1", 12, backbone="tiny"), "score"),
}
v2, v3, v3plus = [build_model(f"deeplab_{n}", 12, backbone="tiny", width=4) for n in ("v2", "v3", "v3plus")]
scenes = SceneDataset("shapes", size=64, length=4)
image, target = scenes[1]
votes = F.avg_pool2d(F.one_hot(target.long(), 12).movedim(-1, 0).float()[None], 9, 8, 4, count_include_pad=False)
coarse = (F.interpolate(votes, (64, 64), mode="bilinear", align_corners=True)[0] + 0.01) / 1.12

def change(alpha, beta, w1, w2, **options):
    after = DenseCRF(w1, alpha, beta, w2, 3, **options).refine(image, coarse).argmax(0)
    return f"{(after != coarse.argmax(0)).float().mean():.1%}"
"""
EXPLORERS = {
    "taps": "taps = explore_taps()\ntaps",
    "field": "field = explore_field(models, size=193)\nfield",
    "aspp": "aspp = explore_aspp()\naspp",
    "stride": "stride = explore_output_stride()\nstride",
    "branches": "branches = explore_branches(v2, scenes)\nbranches",
    "decoder": "decoder = explore_decoder(v3, v3plus, scenes)\ndecoder",
    "crf": "crf = explore_crf(image, coarse, scenes.labels, DenseCRF(4, 16, 15, 3, 3))\ncrf",
    "own": "own = explore_photograph({n: (m, scenes.labels) for n, m in (('v2', v2), ('v3', v3))}, longest=96)\nown",
}
EVENTS = 200


def test_every_explorer_is_opened_here():
    there_are = {name for name in vars(explorers) if name.startswith("explore_")}
    assert there_are == set(re.findall(r"= (explore_\w+)", " ".join(EXPLORERS.values())))


@pytest.fixture(scope="module")
def lab(open_lab):
    return open_lab([START, *EXPLORERS.values()])


class View:
    """One explorer in the page."""

    def __init__(self, lab, name):
        self.lab, self.page, self.name = lab, lab.page, name
        self.root = lab.page.locator(".jp-CodeCell").nth(1 + list(EXPLORERS).index(name))
        self.root.scroll_into_view_if_needed()

    def control(self, name):
        return self.root.locator(".widget-inline-hbox").filter(has=self.page.get_by_text(name, exact=True))

    def handle(self, name):
        return self.control(name).locator(".noUi-handle")

    def picture(self, index=0):
        return self.root.locator(".deeplab-click-image").nth(index)

    def line(self):
        return self.root.locator(".deeplab-line").inner_text()

    def pictures(self):
        return self.root.locator(".deeplab-click-image img").evaluate_all("images => images.map(i => i.src)")

    def click(self, index, row, column):
        """Click into the pixel (row, column) of a picture."""
        frame = self.picture(index)
        frame.scroll_into_view_if_needed()  # a click outside the window is lost without a word
        left, top, width, height = (
            float(n) for n in self.lab.ask(f"*{self.name}.pictures[{index}].area").split()
        )
        rows, columns = (int(n) for n in self.lab.ask(f"*{self.name}.pictures[{index}].extent").split())
        box = frame.locator("img").bounding_box()
        x = box["x"] + box["width"] * (left + width * (column + 0.5) / columns)
        self.page.mouse.click(x, box["y"] + box["height"] * (top + height * (row + 0.5) / rows))

    def drag(self, handle, across):
        """Pull the handle of a slider with the mouse."""
        handle.scroll_into_view_if_needed()
        box = handle.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + across, y, steps=6)
        self.page.mouse.up()

    def wait(self, text):
        self.page.wait_for_function(
            "([element, text]) => element.innerText.includes(text)",
            arg=[self.root.locator(".deeplab-line").element_handle(), text],
            timeout=20_000,
        )

    def shot(self, what):
        """A screenshot at 1200 and at 800 pixels: nothing is wider than its cell, no picture is squeezed."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        for width in (1200, 800):
            self.page.set_viewport_size({"width": width, "height": 1900})
            self.root.scroll_into_view_if_needed()
            self.page.wait_for_timeout(300)
            self.root.screenshot(path=SHOTS / f"{self.name}_{what}_{width}.png")
            output = self.root.locator(".jp-OutputArea-output").last
            assert output.evaluate("e => e.scrollWidth <= e.clientWidth + 1"), (
                f"{self.name} is cut off at {width} px"
            )
            shapes = self.root.locator("img").evaluate_all(
                "a => a.map(i => [i.width, i.height, i.naturalWidth, i.naturalHeight])"
            )
            assert all(abs(w / h - nw / nh) < 0.02 and w >= 0.8 * nw for w, h, nw, nh in shapes)
        self.page.set_viewport_size({"width": 1200, "height": 1000})

    def sound(self):
        """Nothing went wrong, here or in the kernel, and nothing wanted to leave the machine."""
        self.lab.ask("'done'")
        assert (self.lab.failures(), self.lab.console, self.lab.outside) == ([], [], [])


def test_taps_by_keys_and_by_mouse(lab):
    view = View(lab, "taps")
    view.shot("before")
    assert "reads 49 of the 169 pixels of its 13 x 13 window (29%)" in view.line()
    before = view.pictures()
    view.handle("rate, layer 1").focus()
    view.page.keyboard.press("ArrowLeft")
    view.wait("of the 121 pixels of its 11 x 11 window")
    assert all(changed(before, view.pictures()))
    assert view.control("rates").locator("select").input_value() == "your own"
    view.control("rates").locator("select").select_option("hybrid: 1 2 5")
    view.wait("reads 289 of the 289 pixels")
    view.drag(view.handle("layers"), -200)
    view.wait("reads 9 of the 9 pixels of its 3 x 3 window")
    view.control("rates").locator("select").select_option("too far: 1 2 9")
    view.wait("reads 441 of the 625 pixels")
    view.shot("after")
    view.sound()


def test_a_pixel_by_mouse_and_by_keys(lab):
    view = View(lab, "field")
    view.shot("before")
    view.wait("Pixel (row 96, column 96)")
    before = view.pictures()
    view.click(1, 40, 150)
    view.wait("Pixel (row 40, column 150)")
    view.sound()
    assert all(changed(before, view.pictures())), "both models follow"
    keys = {
        "ArrowRight": (40, 151),
        "ArrowDown": (41, 151),
        "Shift+ArrowUp": (31, 151),
        "Shift+ArrowLeft": (31, 141),
    }
    for key, (row, column) in keys.items():
        view.page.keyboard.press(key)  # the click has focused the picture
        view.wait(f"Pixel (row {row}, column {column})")
    taps = lab.ask(
        "int(Lens(*models['DeepLab v1'][:1], (193, 193), 'score').graph.tap_map((4, 18), 'score').sum())"
    )
    view.wait(f"reads {int(taps):,} of the picture's 37,249 pixels")
    view.shot("after")
    view.sound()


def test_the_picture_can_be_reached_and_heard(lab):
    """Tab reaches the picture, which shows that it has the focus; a screen reader hears what it is and where."""
    view = View(lab, "field")
    view.root.locator("input[type=checkbox]").last.focus()
    frame = view.picture(0)
    for _ in range(4):
        view.page.keyboard.press("Tab")
        if frame.evaluate("e => e === document.activeElement"):
            break
    assert frame.evaluate("e => e === document.activeElement")
    assert frame.evaluate("e => getComputedStyle(e).outlineWidth") == "3px"
    label = frame.get_attribute("aria-label")
    assert label.startswith("FCN-32s: what the unit over the pixel sees; window 337 x 337 px")
    assert "Arrow keys move by a pixel, with shift by 10" in label
    assert frame.locator("img").get_attribute("alt") and label.startswith(
        frame.locator("img").get_attribute("alt")
    )
    view.page.keyboard.press("ArrowLeft")
    row, column = lab.ask("*field.pictures[0].pixel").split()
    assert frame.locator("[aria-live]").inner_text() == f"row {row}, column {column}"
    cell = lab.page.evaluate("() => window.jupyterapp.shell.currentWidget.content.activeCellIndex")
    view.page.keyboard.press("ArrowDown")
    view.wait(f"Pixel (row {int(row) + 1}, column {column})")
    assert lab.page.evaluate("() => window.jupyterapp.shell.currentWidget.content.activeCellIndex") == cell


def test_a_picture_of_ones_own(lab, tmp_path):
    view = View(lab, "field")
    before = view.pictures()
    Image.new("RGB", (300, 200), "darkred").save(tmp_path / "own.png")
    (tmp_path / "own.txt").write_text("no picture")
    open_file(view, tmp_path / "own.png")
    view.page.wait_for_function(
        "([element, before]) => element.src !== before",
        arg=[view.root.locator(".deeplab-click-image img").first.element_handle(), before[0]],
    )
    view.wait("Pixel (row")
    open_file(view, tmp_path / "own.txt")
    view.wait("this file is no picture that can be read; choose a JPEG or PNG")
    view.sound()


def open_file(view, path):
    with view.page.expect_file_chooser() as chooser:
        view.root.get_by_role("button", name="your picture").click()
    chooser.value.set_files(path)


def test_aspp_at_a_corner(lab):
    view = View(lab, "aspp")
    view.shot("before")
    view.wait("rate 6: 9 of 9 weights; rate 12: 9 of 9 weights; rate 18: 1 of 9 weights")
    view.click(2, 40, 470)
    view.wait("rate 6: 4 of 9 weights; rate 12: 4 of 9 weights; rate 18: 4 of 9 weights")
    view.control("output stride").locator("select").select_option("8")
    view.wait("on a map of 65 x 65 units")
    view.wait("rate 36: 4 of 9 weights")
    view.picture(2).focus()
    view.page.keyboard.press("Shift+ArrowDown")
    view.wait("Pixel (row 48, column 470)")
    view.shot("after")
    view.sound()


def test_output_stride(lab):
    view = View(lab, "stride")
    view.shot("before")
    before = view.pictures()
    view.control("output stride").locator("select").select_option("8")
    view.wait("stride 8: a forward pass takes ")
    assert all(changed(before, view.pictures()))
    assert view.picture(0).get_attribute("tabindex") is None, "nothing to pick here"
    view.control("image side, px").locator("select").select_option("257")
    view.page.wait_for_function("() => document.querySelector('img[alt*=\"33 x 33 units on 257 x 257\"]')")
    view.shot("after")
    view.sound()


def changed(before, after):
    return [a != b for a, b in zip(before, after, strict=True)]


def test_branches_by_mouse_and_by_keys(lab):
    view = View(lab, "branches")
    view.shot("before")
    view.wait("4 of 4 branches: ")
    before = view.pictures()
    view.root.get_by_label("rate 1", exact=True).click()
    view.wait("3 of 4 branches: ")
    assert changed(before, view.pictures()) == [False, True, True]
    for rate in ("rate 2", "rate 4", "rate 6"):
        view.root.get_by_label(rate, exact=True).focus()
        view.page.keyboard.press("Space")
    view.wait("0 of 4 branches: ")
    ground = float(lab.ask("f'{(target != 0).float().mean():.1%}'").rstrip("%"))
    view.handle("scene").focus()
    view.page.keyboard.press("ArrowRight")
    view.wait(f"0 of 4 branches: {ground}% of the pixels are wrong")
    view.shot("after")
    view.sound()


def test_decoder_by_mouse_and_by_keys(lab):
    view = View(lab, "decoder")
    view.shot("before")
    view.wait("v3+ with 4 of 4 low-level channels, output stride 16: ")
    before = view.pictures()
    view.handle("low-level").focus()
    view.page.keyboard.press("Home")
    view.wait("v3+ with 0 of 4 low-level channels, output stride 16: ")
    assert changed(before, view.pictures()) == [False, True, True]
    view.drag(view.handle("low-level"), 200)
    view.wait("v3+ with 4 of 4 low-level channels")
    view.control("output stride").locator("select").select_option("8")
    view.wait("low-level channels, output stride 8: ")
    view.root.get_by_label("decoder", exact=True).click()
    view.wait("v3, no decoder, output stride 8: ")
    assert view.control("low-level").locator(".noUi-target").get_attribute("disabled") is not None
    view.shot("after")
    view.sound()


def test_crf_by_mouse_and_by_keys(lab):
    view = View(lab, "crf")
    view.shot("before")
    view.wait(f"{lab.ask('change(16, 15, w1=4, w2=3)')} of the labels change")
    before = view.pictures()
    view.drag(view.handle("w1"), -200)
    view.wait(f"{lab.ask('change(16, 15, w1=0, w2=3)')} of the labels change")
    view.handle("w2").focus()
    view.page.keyboard.press("Home")
    view.wait("0.0% of the labels change")
    assert changed(before, view.pictures()) == [False, False, True, True]
    view.control("K' is").locator("select").select_option("symmetric")
    view.handle("w1").focus()
    view.page.keyboard.press("End")
    share = lab.ask("change(16, 15, w1=12, w2=0, normalization='symmetric')")
    view.wait(f"{share} of the labels change")
    view.shot("after")
    view.sound()


@pytest.mark.parametrize("name", EXPLORERS)
def test_random_events(lab, name):
    view, dice = View(lab, name), random.Random(name)
    handles = view.root.locator(".noUi-handle").element_handles()
    selects = view.root.locator("select").element_handles()
    ticks = view.root.locator("input[type=checkbox]").element_handles()
    frames = view.root.locator(".deeplab-click-image.pickable").element_handles()
    keys = ["ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight"]

    def turn(handle):
        handle.focus()
        view.page.keyboard.press(dice.choice([*keys, "Home", "End", "PageUp", "PageDown"]))

    def drag(handle):
        handle.scroll_into_view_if_needed()
        box = handle.bounding_box()
        view.page.mouse.move(box["x"] + 8, box["y"] + 8)
        view.page.mouse.down()
        view.page.mouse.move(box["x"] + dice.randint(-120, 120), box["y"] + dice.randint(-9, 30), steps=3)
        view.page.mouse.up()

    def select(element):
        element.select_option(index=dice.randrange(element.evaluate("e => e.options.length")))

    def pick(frame):
        frame.scroll_into_view_if_needed()
        box = frame.bounding_box()
        x, y = (box[a] + dice.random() * box[b] for a, b in (("x", "width"), ("y", "height")))
        view.page.mouse.move(x, y)
        view.page.mouse.down()
        view.page.mouse.move(x + dice.randint(-90, 90), y + dice.randint(-90, 90), steps=2)
        view.page.mouse.up()

    def move(frame):
        frame.focus()
        view.page.keyboard.press(dice.choice(["", "Shift+"]) + dice.choice(keys))

    actions = [(turn, handles), (drag, handles), (select, selects), (pick, frames), (move, frames)]
    actions += [(lambda box: box.click(), ticks)]
    actions = [(act, on) for act, on in actions if on]
    for _ in range(EVENTS):
        act, on = dice.choice(actions)
        act(dice.choice(on))
    assert_line_is_the_kernels(view)
    view.sound()


def assert_line_is_the_kernels(view):
    """When all is done the page shows what the kernel's own explorer says, and that is what a redraw would say."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        said = [view.lab.ask(f"{view.name}.line.value"), view.lab.ask(f"{view.name}.redraw()")]
        tags = re.compile(r"<br>|\s+"), re.compile(r"</?(b|i|span)\b.*?>")
        plain = [" ".join(html.unescape(tags[1].sub("", tags[0].sub(" ", text))).split()) for text in said]
        if plain[0] == plain[1] == " ".join(view.line().split()):
            return
        view.page.wait_for_timeout(200)
    raise AssertionError((said, view.line()))
