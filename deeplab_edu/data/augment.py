"""Joint transforms of image and mask, and the ImageNet normalisation.

Images are resampled bilinearly, masks always by the nearest pixel: the mean of class 3 and class 5
is not class 4. What scaling leaves empty is padded with void, so that nobody learns from padding.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from deeplab_edu.data.labels import IGNORE_INDEX

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MEAN_COLOR = tuple(round(255 * m) for m in IMAGENET_MEAN)  # padding in this colour is about 0 when normalised


def normalize(images: Tensor) -> Tensor:
    """uint8 RGB (..., 3, H, W) -> float32 of about zero mean and unit variance, on the same device.

    Raises:
        TypeError: not uint8 (most likely normalised already).
        ValueError: no (..., 3, H, W).
    """
    if images.dtype != torch.uint8:
        raise TypeError(
            f"normalize() takes uint8 images (0..255), got {images.dtype}: is it normalised already?"
        )
    if images.ndim < 3 or images.shape[-3] != 3:
        raise ValueError(f"normalize() takes RGB images (..., 3, H, W), got {tuple(images.shape)}.")
    scaled = v2.functional.to_dtype(images.as_subclass(torch.Tensor), torch.float32, scale=True)
    return v2.functional.normalize(scaled, list(IMAGENET_MEAN), list(IMAGENET_STD), inplace=True)


def denormalize(images: Tensor) -> Tensor:
    """The inverse of `normalize`, for display: float (..., 3, H, W) -> uint8, clipped to 0..255."""
    mean, std = (images.new_tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (255 * (images * std + mean)).round().clamp(0, 255).to(torch.uint8)


def train_transforms(
    crop_size: int | tuple[int, int], scale: tuple[float, float] = (0.5, 2.0), flip: bool = True
) -> v2.Compose:
    """Random scale, crop and left-right flip (DeepLab v3 §4.1; v2 drew the scale from 0.5 to 1.5).

    Args:
        crop_size: side, or (height, width), of the result in px. A scaled image that is smaller is
            padded at a random offset, with the mean colour and, in the mask, with void.
        scale: smallest and largest factor, drawn uniformly; (1, 1) leaves the size alone.
        flip: mirror every other image.

    Random numbers come from torch's global generator (``torch.manual_seed``).

    Raises:
        ValueError: a crop without pixels, or a scale range that is empty or not positive.
    """
    crop = (crop_size, crop_size) if isinstance(crop_size, int) else tuple(crop_size)
    if len(crop) != 2 or min(crop) < 1:
        raise ValueError(f"crop_size is a side or (height, width) of at least 1 px, got {crop_size}.")
    if not 0 < scale[0] <= scale[1]:
        raise ValueError(f"scale is (smallest, largest) with 0 < smallest <= largest, got {scale}.")
    fill: Any = {tv_tensors.Image: list(MEAN_COLOR), tv_tensors.Mask: IGNORE_INDEX}
    steps: list[v2.Transform] = [RandomScale(scale), v2.RandomCrop(crop, pad_if_needed=True, fill=fill)]
    return v2.Compose([*steps, v2.RandomHorizontalFlip()] if flip else steps)


def eval_transforms(size: int | Sequence[int] | None = None) -> v2.Compose:
    """Nothing at all, or a resize to one size, so that pictures of many sizes fit into a batch.

    Args:
        size: (height, width) in px, exactly; an int is the shorter side, the other one follows;
            None leaves everything as it is. Scores measured after a resize are scores at that
            size: for numbers to be compared with papers use None.

    Raises:
        ValueError: a size without pixels.
    """
    if size is None:
        return v2.Compose([v2.Identity()])
    sides = [size] if isinstance(size, int) else [*size]
    if len(sides) > 2 or not sides or min(sides) < 1:
        raise ValueError(f"size is a side or (height, width) of at least 1 px, got {size}.")
    return v2.Compose([Resize(sides)])


class Resize(v2.Resize):
    """torchvision's Resize, with the pixel centres of image and mask in the same places."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(v2.functional.resize, inpt, self.size, interpolation=_interpolation(inpt))


class RandomScale(v2.Transform):
    """Resize by a random factor of the image's own size (torchvision's ScaleJitter needs a target size)."""

    def __init__(self, scale: tuple[float, float]) -> None:
        super().__init__()
        self.scale = tuple(scale)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        factor = torch.empty(()).uniform_(*self.scale).item()
        return {"size": [max(1, round(factor * side)) for side in v2.functional.get_size(flat_inputs[0])]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(
            v2.functional.resize, inpt, params["size"], interpolation=_interpolation(inpt)
        )


def _interpolation(inpt: Any) -> v2.InterpolationMode:
    # "nearest" takes the pixel left of the centre and shifts masks by up to half a pixel against the
    # image; "nearest-exact" does not (older torchvision uses "nearest" for masks whatever is asked).
    mask = isinstance(inpt, tv_tensors.Mask)
    return v2.InterpolationMode.NEAREST_EXACT if mask else v2.InterpolationMode.BILINEAR
