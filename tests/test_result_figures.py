"""Figures of results draw what was read from files that say where it comes from, and nothing else."""

import json

import matplotlib
import pytest
from matplotlib.figure import Figure

from deeplab_edu.ledger import read_published
from deeplab_edu.profiles import PROFILES
from deeplab_edu.result_figures import (
    APART,
    LADDER_METRICS,
    MODEL_NAMES,
    draw_beside,
    draw_ladder,
    draw_published,
)
from deeplab_edu.results import FOLDER, load_result, provenance, save_result

matplotlib.use("agg")
METRICS = ("miou", "thin")


@pytest.fixture
def folder(tmp_path):
    """A ladder of three models and two seeds; v3+ is best in `miou`, FCN-8s in `thin`."""
    scores = {"fcn8s": ([0.3, 0.4], [0.8, 0.9]), "deeplab_v1": ([0.5, 0.5], [0.1, 0.2])}
    scores["deeplab_v3plus"] = ([0.7, 0.6], [0.5, 0.6])
    measured = {model: dict(zip(METRICS, values)) for model, values in scores.items()}
    save_result("ladder", "python l.py", PROFILES["cpu"], measured, folder=tmp_path, seeds=[0, 1])
    return tmp_path


def without(folder, *keys):
    """The ladder again, its file lacking an entry."""
    path = folder / "ladder.json"
    content = json.loads(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    del place[keys[-1]]
    path.write_text(json.dumps(content))
    return load_result("ladder", folder=folder)


def axes(count):
    return list(Figure(layout="constrained").subplots(1, count, squeeze=False)[0])


def key_of(ax):
    """The words of the figure's key."""
    (legend,) = ax.figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_the_ladder_is_drawn_as_recorded_with_its_source(folder):
    panels = axes(2)
    draw_ladder(panels, load_result("ladder", folder=folder), METRICS)
    assert [t.get_text() for t in panels[0].get_yticklabels()] == ["FCN-8s", "v1", "v3+"]
    path, *rows, means = panels[0].lines
    assert path.get_xdata().tolist() == means.get_xdata().tolist() == pytest.approx([35, 50, 65])
    assert means.get_linestyle() == "None" and means.get_marker() == "|"
    assert [row.get_xdata().tolist() for row in rows] == [
        pytest.approx(pair) for pair in ([30, 40], [50, 50], [70, 60])
    ]
    assert [row.get_marker() for row in rows] == ["o", "o", "D"], "the best one has a sign of its own"
    assert [row.get_marker() for row in panels[1].lines[1:-1]] == ["D", "o", "o"]
    assert key_of(panels[0]) == ["a seed", "mean of the seeds", "best mean on equal terms"]
    source = panels[0].figure.get_supxlabel()
    assert source.startswith("python l.py (profile cpu, seeds 0, 1, ") and "torch " in source


def test_what_is_not_on_equal_terms_is_hollow_and_never_the_best(folder):
    path = folder / "ladder.json"
    content = json.loads(path.read_text())
    content["measured"][APART] = {"miou": [0.9, 0.8], "thin": [0.1, 0.1]}
    path.write_text(json.dumps(content))
    (panel,) = axes(1)
    draw_ladder([panel], load_result("ladder", folder=folder), ["miou"])
    joined, *rows, means, border = panel.lines
    assert joined.get_xdata().tolist() == pytest.approx([35, 50, 65]), "the line ends before it"
    assert means.get_xdata().tolist() == pytest.approx([35, 50, 65, 85])
    assert [row.get_marker() for row in rows] == ["o", "o", "D", "o"]
    assert [row.get_markerfacecolor() == "white" for row in rows] == [False, False, False, True]
    assert list(border.get_ydata()) == [2.5, 2.5]
    assert key_of(panel)[-1].startswith("not on equal terms")


def test_the_source_names_all_that_a_repetition_needs(folder):
    record = load_result("ladder", folder=folder)
    said = provenance(record)
    for part in (record["command"], "profile cpu", "seeds 0, 1", record["machine"]["device"], "torch"):
        assert part in said


@pytest.mark.parametrize(
    "keys, missing",
    [
        (("command",), "command"),
        (("profile",), "profile"),
        (("seeds",), "seeds"),
        (("machine",), "device and versions"),
        (("machine", "versions"), "versions"),
        (("machine", "device"), "device"),
    ],
)
def test_a_file_that_does_not_say_where_it_comes_from_is_refused(folder, keys, missing):
    record = without(folder, *keys)
    for draw in (
        lambda: draw_ladder(axes(2), record, METRICS),
        lambda: draw_beside(axes(1)[0], read_published("camvid_test"), {"ours": (record, {"miou": 0.5})}),
    ):
        with pytest.raises(ValueError, match=f"does not say its {missing}: measure it again"):
            draw()


def test_typed_numbers_are_refused(folder):
    typed = dict(load_result("ladder", folder=folder))
    with pytest.raises(TypeError, match="as load_result reads them, not from a dict"):
        draw_ladder(axes(2), typed, METRICS)
    with pytest.raises(TypeError, match="as load_result reads them, not from a dict"):
        draw_beside(axes(1)[0], read_published("camvid_test"), {"ours": (typed, {"miou": 0.5})})
    rows = [{"model": "mine", "miou": 99.9, "year": 2026, "source": "me"}]
    for draw in (
        draw_published,
        lambda ax, rows: draw_beside(ax, rows, {}),
        lambda ax, rows: draw_beside(ax, read_published("camvid_test"), {}, again=rows),
    ):
        with pytest.raises(TypeError, match="rows are as read_published"):
            draw(axes(1)[0], rows)


def test_a_panel_for_each_metric(folder):
    with pytest.raises(ValueError, match="2 metrics need as many axes, not 3"):
        draw_ladder(axes(3), load_result("ladder", folder=folder), METRICS)


def test_published_bars_are_as_long_as_the_numbers():
    (ax,) = axes(1)
    rows = read_published("voc2012_test")
    draw_published(ax, rows, "title")
    assert [bar.get_width() for bar in ax.patches] == [row["miou"] for row in rows]
    assert [bool(bar.get_hatch()) for bar in ax.patches] == [row.get("jft", False) for row in rows]
    assert ax.get_yticklabels()[0].get_text() == "FCN-8s  2015"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["pre-trained on JFT, too"]
    (ax,) = axes(1)
    draw_published(ax, [row for row in rows if not row.get("jft")])
    assert ax.get_legend() is None, "nothing is hatched, and nothing explains it"


def test_ours_stand_among_the_others_by_score(folder):
    (ax,) = axes(1)
    rows = read_published("camvid_test")
    draw_beside(ax, rows, {"ours *": (load_result("ladder", folder=folder), {"miou": 0.6})})
    lengths = [bar.get_width() for bar in ax.patches]
    assert lengths == sorted([row["miou"] for row in rows] + [60.0])
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names[lengths.index(60.0)] == "ours *" and "FCN8 *" in names and "FC-DenseNet103" in names
    assert key_of(ax) == ["published", "published, from ImageNet weights", "ours, from ImageNet weights"]


def test_repetitions_are_hollow_bars_among_the_others(folder):
    (ax,) = axes(1)
    rows, again = read_published("camvid_test"), read_published("camvid_repetitions")
    draw_beside(ax, rows, {"ours": (load_result("ladder", folder=folder), {"miou": 0.6})}, again=again)
    hollow = [bar.get_width() for bar in ax.patches if bar.get_facecolor() == (1, 1, 1, 1)]
    assert hollow == sorted(row["miou"] for row in again)
    assert key_of(ax)[2:] == ["a published network, repeated by others", "ours"]


def test_nothing_of_the_camvid_figure_is_cut_off_or_lies_over_another(folder):
    """With titles as long as they get, and the command of a GPU under it."""
    path = folder / "ladder.json"
    command = (
        "python experiments/camvid_protocol.py --iterations 3000 --seed 2 --device cuda --backbone resnet101"
    )
    path.write_text(json.dumps(json.loads(path.read_text()) | {"command": f"{command} --full-resolution"}))
    figure = Figure(figsize=(9.5, 7), dpi=80, layout="constrained")
    ours = {
        "v3+ ResNet-101, full size, scales and flips *": (load_result("ladder", folder=folder), {"miou": 0.7})
    }
    ax = figure.subplots()
    draw_beside(ax, read_published("camvid_test"), ours, "title", again=read_published("camvid_repetitions"))
    figure.savefig(folder / "figure.png")
    label, (legend,) = figure._supxlabel, figure.legends
    boxes = [text.get_window_extent() for text in (*ax.get_yticklabels(), label, ax.xaxis.label, legend)]
    for box in boxes:
        assert 0 <= box.x0 < box.x1 <= figure.bbox.x1 and 0 <= box.y0 < box.y1 <= figure.bbox.y1
    lines = label.get_text().count("\n") + 1
    free = label.get_text()[len(label.get_text().rstrip()) :].count("\n") / lines * boxes[-3].height
    assert legend.get_window_extent().y1 <= boxes[-3].y0 + free, "the key lies under the sources"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("ladder.*.json")), ids=lambda path: path.stem)
def test_names_of_models_and_metrics_cover_a_recorded_ladder(path):
    """Whatever the experiment measures has a name in the figure."""
    recorded = load_result(path.stem)
    assert recorded["measured"].keys() <= MODEL_NAMES.keys()
    for scores in recorded["measured"].values():
        assert scores.keys() >= LADDER_METRICS.keys()
        assert {len(values) for values in scores.values()} == {len(recorded["seeds"])}
