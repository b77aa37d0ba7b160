"""Every model as an ONNX file: onnxruntime, which knows nothing of PyTorch, computes the same logits from it."""

import pytest
import torch
from torch import nn

from deeplab_edu.models import MODELS, build_model

TINY = {"backbone": "tiny", "width": 4}
EXPORTED = [name for name in MODELS if name not in ("fcn32s", "fcn16s")]  # fcn8s has all their layers


def with_random_weights(model):
    """Also where weights would start at zero or one, and in the statistics of batch normalisation."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.3)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return model.eval()


def assert_exported_is_equal(model, path, size, other_size=None):
    """Trace `model` at `size`, free to change where there is an `other_size`, and ask onnxruntime for both."""
    pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    free = torch.export.Dim.DYNAMIC
    dynamic = {"images": {0: free, 2: free, 3: free}} if other_size else None
    program = torch.onnx.export(
        model, (torch.randn(2, 3, *size),), dynamo=True, dynamic_shapes=dynamic, verbose=False
    )
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for shape in [(2, 3, *size), *([(1, 3, *other_size)] if other_size else [])]:
        images = torch.randn(shape)
        with torch.no_grad():
            logits = model(images)
        (exported,) = session.run(None, {"images": images.numpy()})
        assert exported.shape == logits.shape and logits.std() > 0.01
        assert (torch.from_numpy(exported) - logits).abs().max() < 1e-4 * logits.abs().max()


@pytest.mark.required_in_ci
@pytest.mark.parametrize("name", ["fcn8s", "deeplab_v1", "deeplab_v3plus"])  # v3+ has the layers of v2 and v3
def test_onnxruntime_computes_the_same_logits(name, tmp_path):
    model = with_random_weights(build_model(name, 5, **TINY))
    assert_exported_is_equal(model, tmp_path / "model.onnx", size=(70, 93))


@pytest.mark.slow  # torch.export takes half a minute to see that the sides of a map fit together whatever the image's
@pytest.mark.parametrize("name", EXPORTED)
def test_one_file_takes_images_of_any_number_and_size(name, tmp_path):
    model = with_random_weights(build_model(name, 5, **TINY))
    assert_exported_is_equal(model, tmp_path / "model.onnx", size=(70, 93), other_size=(101, 64))
