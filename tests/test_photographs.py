"""The dense CRF on photographs (`experiments/crf_photographs.py`): the network it takes, and what is recorded."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

from deeplab_edu.crf import PRESETS
from deeplab_edu.data import open_dataset
from deeplab_edu.models.backbones import atrous_backbone
from deeplab_edu.results import load_result

TOP = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("DEEPLAB_EDU_DATA", "data")).resolve()  # tests/conftest.py looks for it


@pytest.fixture(scope="module")
def experiment():
    spec = importlib.util.spec_from_file_location("photographs", TOP / "experiments" / "crf_photographs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_features_are_the_packages_mobilenet(experiment):
    torch.manual_seed(0)
    network, ours = experiment.VocNetwork().eval(), atrous_backbone("mobilenet_v2", output_stride=16).eval()
    given = [value for name, value in network.state_dict().items() if name.startswith("features.")]
    ours.load_state_dict(dict(zip(ours.state_dict(), given, strict=True)))
    images = torch.randn(1, 3, 97, 129)
    with torch.inference_mode():
        torch.testing.assert_close(network.features(images), ours(images)[-1])
        assert network(images).shape == (1, 21, 97, 129)


def test_a_class_that_is_only_predicted_does_not_move_a_mean(experiment):
    tally, target = experiment.Tally(), torch.zeros(40, 40, dtype=torch.long)
    target[:20], target[18:22] = 5, 255
    prediction = torch.where(target == 5, 5, 0)
    prediction[39, 39] = 7  # a speck far from void
    tally.update(prediction, target)
    scores = tally.scores()
    assert scores["trimap1"] == scores["trimap10"] == 1
    assert scores["classes"].keys() == {"background", "bottle"}
    assert scores["miou"] == pytest.approx((1 + 719 / 720) / 2)
    assert scores["band_accuracy_by_image"] == [1.0]


def test_all_presets_are_recorded_on_the_same_images():
    result = load_result("crf_photographs")
    assert result["measured"].keys() == {"network", *PRESETS}
    assert {len(arm["band_accuracy_by_image"]) for arm in result["measured"].values()} == {
        len(result["images"])
    }


@pytest.mark.slow
def test_two_photographs_score_as_recorded(experiment):
    weights = DATA / "weights" / "deeplabv3_mnv2_voc.pth"
    if not weights.is_file() or not (DATA / "voc_mini").is_dir():
        pytest.skip("the photographs and the weights of their network are not here (DEEPLAB_EDU_DATA)")
    network, recorded = experiment.load_network(weights), load_result("crf_photographs")
    data = open_dataset("voc2012", "val", root=DATA / "voc_mini")
    for index in (0, 8):
        name, (image, target) = data.names[index], data[index]
        given = experiment.probabilities(network, image.as_subclass(torch.Tensor))
        for arm, mask in {"network": given, "v1": PRESETS["v1"].refine(image, given)}.items():
            tally = experiment.Tally()
            tally.update(mask.argmax(0), target)
            at = recorded["images"].index(name)
            expected = recorded["measured"][arm]["band_accuracy_by_image"][at]
            assert tally.by_image[0] == pytest.approx(expected, abs=0.005), (name, arm)
