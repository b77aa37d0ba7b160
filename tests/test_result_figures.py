"""Figures of results draw what was read from files that say where it comes from, and nothing else."""

import json

import matplotlib
import pytest
from matplotlib.figure import Figure

from deeplab_edu.ledger import read_published
from deeplab_edu.profiles import PROFILES
from deeplab_edu.result_figures import LADDER_METRICS, MODEL_NAMES, draw_beside, draw_ladder, draw_published
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


def test_the_ladder_is_drawn_as_recorded_with_its_source(folder):
    panels = axes(2)
    draw_ladder(panels, load_result("ladder", folder=folder), METRICS)
    assert [t.get_text() for t in panels[0].get_yticklabels()] == ["FCN-8s", "v1", "v3+"]
    path, *rows = panels[0].lines
    assert path.get_xdata().tolist() == pytest.approx([35, 50, 65])
    assert [row.get_xdata().tolist() for row in rows] == [
        pytest.approx(pair) for pair in ([30, 40], [50, 50], [70, 60])
    ]
    assert [row.get_marker() for row in rows] == ["o", "o", "D"], "the best one has a sign of its own"
    assert [row.get_marker() for row in panels[1].lines[1:]] == ["D", "o", "o"]
    source = panels[0].figure.get_supxlabel()
    assert source.startswith("python l.py (profile cpu, seeds 0, 1, ") and "torch " in source


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
    for draw in (draw_published, lambda ax, rows: draw_beside(ax, rows, {})):
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


def test_ours_stand_among_the_others_by_score(folder):
    (ax,) = axes(1)
    rows = read_published("camvid_test")
    draw_beside(ax, rows, {"ours *": (load_result("ladder", folder=folder), {"miou": 0.6})})
    lengths = [bar.get_width() for bar in ax.patches]
    assert lengths == sorted([row["miou"] for row in rows] + [60.0])
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names[lengths.index(60.0)] == "ours *" and "FCN8 *" in names and "FC-DenseNet103" in names


@pytest.mark.parametrize("path", sorted(FOLDER.glob("ladder.*.json")), ids=lambda path: path.stem)
def test_names_of_models_and_metrics_cover_a_recorded_ladder(path):
    """Whatever the experiment measures has a name in the figure."""
    recorded = load_result(path.stem)
    assert recorded["measured"].keys() <= MODEL_NAMES.keys()
    for scores in recorded["measured"].values():
        assert scores.keys() >= LADDER_METRICS.keys()
        assert {len(values) for values in scores.values()} == {len(recorded["seeds"])}
