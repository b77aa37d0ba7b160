"""The ledger: verdicts by hand, published numbers with their sources, claims that point at what is recorded."""

import json
import re

import pytest

from deeplab_edu.ledger import (
    NOT_HERE,
    REVERSED,
    SHOWS,
    Line,
    camvid_scores,
    camvid_table,
    judge,
    ledger,
    read_published,
    verdict_on,
)
from deeplab_edu.profiles import PROFILES
from deeplab_edu.results import FOLDER, Record, save_result

CLAIM = {"notebook": "02", "claim": "b is better", "numbers": [1.0, 2.5], "source": "Somebody, table 1"}
OURS = {"result": "study", "without": "a", "with": "b", "metric": "miou"}


@pytest.mark.parametrize(
    "differences, within, expected",
    [
        ([0.1, 2.0, 0.01], None, SHOWS),
        ([-0.1, -2.0, -0.01], None, REVERSED),
        ([5.0, 5.0, -0.01], None, NOT_HERE),
        ([5.0, 5.0, 0.0], None, NOT_HERE),
        ([5.0, 5.0], None, "not tested: 2 of 3 seeds"),
        ([], None, "not tested: 0 of 3 seeds"),
        ([0.5, -0.9, 1.0], 1.0, SHOWS),
        ([0.5, -1.1, 0.0], 1.0, NOT_HERE),
    ],
)
def test_verdicts_by_hand(differences, within, expected):
    assert verdict_on(differences, within) == expected


def record(folder, measured, name="study"):
    save_result(f"{name}.cpu", "python x.py", PROFILES["cpu"], measured, folder=folder, seeds=[0, 1, 2])


def test_a_claim_is_judged_seed_by_seed_in_points(tmp_path):
    record(tmp_path, {"a": {"miou": [0.5, 0.4, 0.3]}, "b": {"miou": [0.51, 0.42, 0.33]}})
    line = judge(CLAIM | {"ours": OURS}, "cpu", tmp_path)
    assert line.differences == pytest.approx((1, 2, 3))
    assert (line.paper, line.ours, line.verdict) == ("1.00 to 2.50", "2.0 (1.0 to 3.0)", SHOWS)
    turned = judge(CLAIM | {"ours": OURS | {"with": "a", "without": "b"}}, "cpu", tmp_path)
    assert turned.verdict == REVERSED


def test_arms_may_lie_deeper_and_one_may_be_longer(tmp_path):
    record(tmp_path, {"thin": {"a": {"miou": [0.5, 0.4]}, "b": {"miou": [0.6, 0.5, 0.9]}}})
    line = judge(CLAIM | {"ours": OURS | {"path": ["thin"]}}, "cpu", tmp_path)
    assert line.differences == pytest.approx((10, 10)) and line.verdict == "not tested: 2 of 3 seeds"


@pytest.mark.parametrize("change", [{"result": "other"}, {"with": "c"}, {"metric": "thin"}, {"path": ["x"]}])
def test_what_is_not_recorded_is_said(tmp_path, change):
    record(tmp_path, {"a": {"miou": [0.5]}, "b": {"miou": [0.6]}})
    line = judge(CLAIM | {"ours": OURS | change}, "cpu", tmp_path)
    assert (line.ours, line.verdict) == ("", "not recorded in profile cpu")


def test_a_single_number_of_a_paper_is_a_gain(tmp_path):
    assert judge(CLAIM | {"numbers": [4.8], "reason": "none"}, "cpu", tmp_path).paper == "+4.8"
    assert judge(CLAIM | {"numbers": [-0.5], "reason": "none"}, "cpu", tmp_path).paper == "-0.5"


def test_a_claim_that_cannot_be_tested_says_why(tmp_path):
    line = judge(CLAIM | {"numbers": None, "reason": "it takes GPUs"}, "cpu", tmp_path)
    assert (line.paper, line.verdict) == ("no number", "not testable here: it takes GPUs")


# --- the file of published numbers ---------------------------------------------------------------------


def write(folder, section):
    (folder / "published.json").write_text(json.dumps({"papers": {"fcn": "Long et al."}, "rows": section}))


@pytest.mark.parametrize("row", [{"miou": 1}, {"miou": 1, "paper": "nobody", "where": "table 1"}])
def test_a_row_without_a_source_is_refused(tmp_path, row):
    write(tmp_path, [row])
    with pytest.raises(ValueError, match="no source stands beside"):
        read_published("rows", folder=tmp_path)


def test_an_unknown_section_lists_what_there_is(tmp_path):
    write(tmp_path, [])
    with pytest.raises(KeyError, match="no section 'claims'; it has papers, rows"):
        read_published("claims", folder=tmp_path)


def test_a_row_is_a_record_with_its_source(tmp_path):
    write(tmp_path, [{"miou": 1, "paper": "fcn", "where": "table 1"}])
    (row,) = read_published("rows", folder=tmp_path)
    assert isinstance(row, Record) and row["source"] == "Long et al., table 1"


def test_the_published_numbers_are_those_of_the_papers():
    """Typed a second time, from the papers' abstracts and tables."""
    test = {row["model"]: row["miou"] for row in read_published("voc2012_test")}
    assert test["FCN-8s"] == 62.2 and test["v1 + CRF, LargeFOV, skips"] == 71.6
    assert test["v2 + CRF, ResNet-101"] == 79.7 and test["v3"] == 85.7
    assert test["v3+, Xception"] == 87.8 and test["v3+, Xception, JFT"] == 89.0
    streets = {row["model"]: (row["miou"], row["pretrained"]) for row in read_published("camvid_test")}
    assert streets["FC-DenseNet103"] == (66.9, False) and streets["FCN8"] == (57.0, True)
    years = [row["year"] for row in read_published("voc2012_test")]
    assert years == sorted(years)


# --- the course's own ledger ---------------------------------------------------------------------------


def test_every_claim_has_a_comparison_or_a_reason_and_its_arms_are_recorded():
    for claim, line in zip(read_published("claims"), ledger(), strict=True):
        assert ("ours" in claim) != ("reason" in claim), claim["claim"]
        if "ours" in claim and line.differences == ():
            missing = not (FOLDER / f"{line.record}.json").exists()
            assert missing or claim.get("awaited"), (
                f"{claim['claim']!r} names an arm that {line.record} does not hold"
            )


def test_the_ledger_covers_every_model_notebook():
    lines = ledger()
    assert {line.notebook for line in lines} == {"01", "02", "04", "05", "06", "07", "08", "09"}
    assert all(isinstance(line, Line) and re.search(r"table|test|section|com|separated|control|compared", line.source)
               for line in lines)  # fmt: skip
    assert {line.verdict.split(":")[0] for line in lines} >= {SHOWS, NOT_HERE, "not testable here"}


def test_camvid_shows_what_is_recorded_and_nothing_else(tmp_path):
    assert camvid_scores(folder=tmp_path) == {}
    save_result("camvid_tiny", "python x.py", PROFILES["cpu"], {"miou": 0.4}, folder=tmp_path, seeds=[0])
    measured = {"scratch": {"test": {"miou": 0.5}}, "imagenet": {"held_out": {"0.001": 0.3}}}
    save_result("camvid_protocol", "python y.py", PROFILES["cpu"], measured, folder=tmp_path, seeds=[0])
    found = {title: scores["miou"] for title, (_, scores) in camvid_scores(folder=tmp_path).items()}
    assert found == {"FCN-8s tiny": 0.4, "v3+ MobileNetV2, half size": 0.5}
    larger = {"folder": tmp_path, "seeds": [0, 1], "backbone": "resnet50", "resolution": "full"}
    measured = {"scratch": {"test, scales and flip": {"miou": 0.6}}, "imagenet": {"test": {"miou": 0.7}}}
    save_result("camvid_protocol.resnet50.full.cuda", "python y.py", PROFILES["gpu"], measured, **larger)
    found = {title: scores["miou"] for title, (_, scores) in camvid_scores(folder=tmp_path).items()}
    assert (
        found["v3+ ResNet-50, full size, scales and flips"] == 0.6
        and found["v3+ ResNet-50, full size *"] == 0.7
    )


def test_the_table_of_camvid_holds_published_repeated_and_ours_by_score(tmp_path):
    source = {"densenet": "[Somebody](https://example.org)"}
    known = {"paper": "densenet", "where": "table 3"}
    published = [
        {"model": "old", "pretrained": True, "millions": 29.5, "miou": 46.4, "accuracy": None} | known
    ]
    again = [{"model": "old again", "miou": 40, "source": "a thread"}]
    content = {"papers": source, "camvid_test": published, "camvid_repetitions": again}
    (tmp_path / "published.json").write_text(json.dumps(content))
    facts = {"folder": tmp_path, "seeds": [0, 1], "recipe": {"iterations": 9}, "parameters": 4_500_000}
    measured = {
        "imagenet": {"test": {"miou": 0.5, "pixel_accuracy": 0.8}},
        "scratch": {"test": {"miou": 0.45}},
    }
    save_result("camvid_protocol", "python y.py", PROFILES["cpu"], measured, **facts)
    first, old, scratch, repeated = camvid_table(folder=tmp_path)
    assert first["source"].startswith("9 steps, seeds 0, 1, ")
    del first["source"]
    name = "v3+ MobileNetV2, half size"
    assert first == {
        "network": name, "ours": True, "pretrained": True, "millions": 4.5, "miou": 50, "accuracy": 80
    }  # fmt: skip
    assert (scratch["network"], scratch["pretrained"], scratch["accuracy"]) == (name, False, None)
    assert old["source"] == "[Somebody](https://example.org), table 3" and old["accuracy"] is None
    assert (repeated["network"], repeated["millions"], repeated["source"]) == ("old again", None, "a thread")


def test_every_paper_and_repetition_is_linked():
    for section in ("voc2012_test", "camvid_test", "camvid_repetitions", "claims"):
        assert all("](https://" in row["source"] for row in read_published(section))
