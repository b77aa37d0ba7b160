"""The explorer of one's own photograph in a real JupyterLab: upload a file, pick a pixel, choose a network."""

from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.required_in_ci

SHOTS = Path(__file__).resolve().parents[2] / "build" / "screenshots"
CELL = """
import torch
from deeplab_edu.data.labels import SCENES, VOC
from deeplab_edu.explorers import OFFICIAL, explore_photograph, official
from deeplab_edu.models import build_model
torch.set_num_threads(1)
torch.manual_seed(0)
networks = {n: (build_model(n, 12, backbone="tiny", width=4), SCENES) for n in ("fcn8s", "deeplab_v3plus")}
mine = explore_photograph(networks | {OFFICIAL: (official, VOC)}, longest=160)
mine
"""


@pytest.fixture(scope="module")
def lab(open_lab):
    return open_lab([CELL])


def wait(lab, text):
    line = lab.page.locator(".deeplab-line").element_handle()
    found = "([element, text]) => element.innerText.includes(text)"
    lab.page.wait_for_function(found, arg=[line, text], timeout=30_000)


def choose(lab, name, value):
    control = lab.page.locator(".widget-inline-hbox").filter(has=lab.page.get_by_text(name, exact=True))
    control.locator("select").select_option(value)


def shot(lab, what):
    SHOTS.mkdir(parents=True, exist_ok=True)
    for width in (1200, 800):
        lab.page.set_viewport_size({"width": width, "height": 1400})
        lab.page.wait_for_timeout(300)
        output = lab.page.locator(".jp-OutputArea-output").last
        assert output.evaluate("e => e.scrollWidth <= e.clientWidth + 1"), f"cut off at {width} px"
        output.screenshot(path=SHOTS / f"photograph_{what}_{width}.png")
    lab.page.set_viewport_size({"width": 1200, "height": 1000})


def test_upload_click_crf_network_and_a_download_that_fails(lab, tmp_path):
    shot(lab, "before")
    wait(lab, "Pixel (row 80, column 68)")
    picture = Image.new("RGB", (80, 40), "navy")
    picture.paste("orange", (20, 10, 50, 30))
    picture.save(tmp_path / "flag.png")
    with lab.page.expect_file_chooser() as chooser:
        lab.page.get_by_role("button", name="your picture").click()
    chooser.value.set_files(tmp_path / "flag.png")
    wait(lab, "Pixel (row 40, column 80)")  # the middle of 160 x 80 pixels
    frame = lab.page.locator(".deeplab-click-image").nth(1)
    frame.scroll_into_view_if_needed()
    box = frame.locator("img").bounding_box()
    left, top, width, height = (float(n) for n in lab.ask("*mine.pictures[1].area").split())
    x = box["x"] + box["width"] * (left + width * 20.5 / 160)
    lab.page.mouse.click(x, box["y"] + box["height"] * (top + height * 10.5 / 80))
    wait(lab, "Pixel (row 10, column 20)")
    lab.page.keyboard.press("ArrowDown")
    wait(lab, "Pixel (row 11, column 20)")
    lab.page.get_by_text("dense CRF", exact=True).click()
    wait(lab, "The CRF changed")
    choose(lab, "network", "deeplab_v3plus")
    choose(lab, "heat map of", "moon")
    assert "deeplab_v3plus" in lab.ask("mine.children[0].children[0].value")
    shot(lab, "after")
    before = lab.page.locator(".deeplab-click-image img").evaluate_all("images => images.map(i => i.src)")
    choose(lab, "picture", "photograph")
    wait(lab, "Pixel (row 80, column 68)")
    after = lab.page.locator(".deeplab-click-image img").evaluate_all("images => images.map(i => i.src)")
    assert all(a != b for a, b in zip(before, after, strict=True))
    assert (lab.failures(), lab.console, lab.outside) == ([], [], [])
