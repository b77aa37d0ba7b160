"""From one photograph of any size to class probabilities: test-time scales and flips, tiles for bounded memory."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from deeplab_edu.data import photos
from deeplab_edu.data.augment import normalize

Photograph = Tensor | np.ndarray | Image.Image | str | Path

GRID = 32
"""Tiles start at multiples of this: the coarsest stride of any backbone, so that its pools pair the same pixels."""


def segment(
    model: nn.Module,
    image: Photograph,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    tile: int = 1024,
    overlap: int = 256,
) -> Tensor:
    """Class probabilities (C, H, W), float32 on the CPU, that `model` gives each pixel of `image`.

    `image` is what a camera or a data set gives: uint8, as a tensor (3, H, W), an array (H, W, 3), a PIL image, or the
    path of a file (turned upright as its EXIF orientation says). It is normalised here. With several `scales`, or with
    `flip`, the model sees the image at each scale, and mirrored too, and the probabilities are averaged (Chen et al.,
    *DeepLab v3*, 2017, §4.1: 0.5, 0.75, ... 1.75 and mirror images).

    Images longer than `tile` pixels are cut into tiles that share `overlap` pixels. Memory is that of the result plus
    that of one tile (at the largest scale), whatever the image's size. Of each overlap the outer quarters are thrown
    away and the middle half is a smooth passage from one tile to the next. At scale 1 the result is therefore that of
    the whole image, up to rounding, if a quarter of the overlap is as much as the furthest a score can see from its
    pixel; a model that sees further (or pools over its whole input) is given less context, and there are no seams.

    The model runs on its own device in evaluation mode; afterwards every module is in the mode it was in before.
    Raises TypeError or ValueError for an image, scales or tiles of the wrong kind and for scores that are not finite,
    FileNotFoundError if there is no file at the path.
    """
    pixels = read_image(image)
    check_settings(scales, tile, overlap)
    height, width = pixels.shape[-2:]
    result = torch.empty(0)
    with evaluating(model):
        for top, bottom, row_weights in tiles(height, tile, overlap):
            for left, right, column_weights in tiles(width, tile, overlap):
                part = predict(model, pixels[:, top:bottom, left:right], scales, flip)
                if result.numel() == 0:
                    result = torch.zeros(len(part), height, width)
                result[:, top:bottom, left:right] += part * (row_weights[:, None] * column_weights)
    return result


def tiles(length: int, tile: int, overlap: int) -> Iterator[tuple[int, int, Tensor]]:
    """Start, stop and weights (stop - start,) of the tiles along an axis; at every pixel the weights sum to one.

    A tile's share rises at its start and falls where the next one's rises, so shares are differences of rises and
    their sum telescopes to that of the first.
    """
    step = (tile - overlap) // GRID * GRID
    shared = tile - step
    starts = range(0, max(length - tile, 0) + step, step)

    def rise(start: int, pixels: Tensor) -> Tensor:
        if start == 0:
            return torch.ones(len(pixels))
        t = ((pixels + 0.5 - start - shared / 4) / (shared / 2)).clamp(0, 1)
        return t * t * (3 - 2 * t)

    for start in starts:
        stop = min(start + tile, length)
        pixels = torch.arange(start, stop)
        falls = rise(start + step, pixels) if start != starts[-1] else 0
        yield start, stop, rise(start, pixels) - falls


@torch.inference_mode()
def predict(model: nn.Module, image: Tensor, scales: Sequence[float], flip: bool) -> Tensor:
    """Probabilities (C, H, W) for a uint8 image (3, H, W), averaged over scales and mirror images, on the CPU."""
    like = next(
        (t for t in chain(model.parameters(), model.buffers()) if t.is_floating_point()), torch.empty(0)
    )
    image = normalize(image).to(like)[None]
    height, width = image.shape[-2:]
    total, views = torch.zeros(()), 0
    for scale in scales:
        scaled = resize(image, max(1, round(height * scale)), max(1, round(width * scale)))
        for mirror in (False, True) if flip else (False,):
            seen = probabilities(model, scaled.flip(-1)).flip(-1) if mirror else probabilities(model, scaled)
            total, views = total.to(seen.device) + resize(seen, height, width), views + 1
    return (total / views)[0].cpu()


def probabilities(model: nn.Module, images: Tensor) -> Tensor:
    """Softmax of the model's logits in float32, (N, 3, H, W) -> (N, C, H, W)."""
    logits = model(images)
    if not isinstance(logits, Tensor) or logits.ndim != 4 or logits.shape[-2:] != images.shape[-2:]:
        what = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ValueError(
            f"the model should return logits (N, C, H, W) as high and wide as its images, not {what}"
        )
    if not logits.isfinite().all():
        raise ValueError(
            "the model returned NaN or infinite scores: its weights are damaged or training diverged"
        )
    return logits.float().softmax(1)


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """Bilinear, averaging over what is left out when shrinking; the images themselves if they have that size."""
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(images, (height, width), mode="bilinear", antialias=True)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; then each module's own mode again, a frozen batch normalisation's too."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def read_image(image: Photograph) -> Tensor:
    """Any of the kinds of image that `segment` takes, as a uint8 tensor (3, H, W)."""
    if isinstance(image, str | Path):
        image = photos.read_image(Path(image))
    if isinstance(image, Image.Image):
        image = np.asarray(photos.to_rgb(image))
    if not isinstance(image, Tensor | np.ndarray):
        raise TypeError(f"an image is a tensor, an array, a PIL image or a path, not {type(image).__name__}")
    shape, dtype, layout = tuple(image.shape), image.dtype, "(3, H, W)"
    if isinstance(image, np.ndarray):
        layout = "(H, W, 3)"
        image = torch.from_numpy(image.copy()).movedim(-1, 0)
    if image.dtype != torch.uint8:
        raise TypeError(f"an image is uint8, 0 to 255 (normalising is done here), not {dtype}")
    if image.ndim != 3 or image.shape[0] != 3 or 0 in shape:
        raise ValueError(f"one image has shape {layout}, none of it zero, not {shape}")
    return image.as_subclass(Tensor)


def check_settings(scales: Sequence[float], tile: int = 1024, overlap: int = 256) -> None:
    if not isinstance(scales, Sequence) or not scales or not all(s > 0 and math.isfinite(s) for s in scales):
        raise ValueError(f"scales is a sequence of positive numbers, e.g. (0.5, 1.0), not {scales!r}")
    if overlap < 0 or tile - overlap < GRID:
        raise ValueError(
            f"tile={tile} is too small for overlap={overlap}: "
            f"it has to be larger by {GRID} or more, and the overlap not negative"
        )
