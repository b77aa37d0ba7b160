"""Procedural scenes: endless labelled pictures in which each paper's mechanism is a measurable bottleneck.

Every scene is painted back to front into one map of layer numbers; colour, texture and label are looked up
per layer at the end, so edges are crisp and labels exact. All lengths are given for a 128 px picture and scale
with its shorter side, except the thickness of thin structures, which grows far slower: a wire stays two to four
pixels wide, as wires do.

=========  ====================================================================================================
preset     what decides the class
=========  ====================================================================================================
shapes     the outline alone: disc, square, triangle and star have equal area, and share hues and textures; three sizes
thin       wires and poles, fences, rings, 2 to 4 px thick: lost by coarse maps
context    lake and ice look the same; the sun or moon at the far edge of the picture decides which it is
noisy      as shapes, under strong noise: local evidence is weak (for the CRF)
full       everything at once
=========  ====================================================================================================

Random numbers are a hash of (seed, split, index, draw), not a generator's state: scene 7 is the same scene
whether it is made alone, in a batch, in another process or on a GPU (there up to rounding of single pixels).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from deeplab_edu.data.labels import SCENES

SPLITS = ("train", "val", "test")
SIZE_BINS = {
    "small": (14.0, 26.0),
    "mid": (26.0, 52.0),
    "big": (60.0, 104.0),
}  # diameter of the equal-area disc, px at 128


@dataclass(frozen=True)
class Preset:
    """Which layers a scene may hold; `shapes` counts the places for (big, mid, small) shapes."""

    shapes: tuple[int, int, int]
    thin: bool = False
    context: bool = False
    noise: float = 0.03  # standard deviation of the pixel noise, image range 0..1


PRESETS = {
    "shapes": Preset((1, 2, 4)),
    "thin": Preset((1, 1, 2), thin=True),
    "context": Preset((0, 1, 2), context=True),
    "noisy": Preset((1, 2, 3), noise=0.12),
    "full": Preset((1, 2, 3), thin=True, context=True),
}


@dataclass(frozen=True)
class Scenes:
    """A batch of B scenes of H x W pixels with L layers (layer 0 is the ground)."""

    images: Tensor  # (B, 3, H, W) uint8
    labels: Tensor  # (B, H, W) uint8, class ids of `labels.SCENES`
    instances: Tensor  # (B, H, W) uint8, one number per object, 0 for the ground
    sizes: Tensor  # (B, H, W) uint8, 1 small, 2 mid, 3 big; 0 where no shape
    classes: Tensor  # (B, L) uint8, class of instance number l

    def boxes(self, index: int) -> dict[int, tuple[int, int, int, int]]:
        """Visible objects of one scene: number -> (left, top, right, bottom) px, right and bottom exclusive."""
        instances = self.instances[index]
        found = {}
        for number in instances.unique().tolist():
            if number == 0:
                continue
            rows, columns = torch.nonzero(instances == number, as_tuple=True)
            left, top = int(columns.min()), int(rows.min())
            found[number] = (left, top, int(columns.max()) + 1, int(rows.max()) + 1)
        return found


def _hash(x: Tensor) -> Tensor:
    """Mix int32 bits (a multiply-xorshift finaliser); `& mask` turns the arithmetic shift into a logical one."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x >> 15) & 0x1FFFF)) * -0x7B935975
    return x ^ ((x >> 16) & 0xFFFF)


class _Dice:
    """Draws for a batch of scenes; the n-th draw of a scene depends on its key and n alone.

    Draws are made DRAWS at a time: one by one their thirty small operations each were four fifths of a scene on a GPU.
    """

    DRAWS = 256

    def __init__(self, seed: int, split: str, indices: Tensor):
        number = seed * len(SPLITS) + SPLITS.index(split)
        salt = torch.tensor((number + 2**31) % 2**32 - 2**31, dtype=torch.int32)  # its last 32 bits
        self.key = _hash(indices.to(torch.int32) ^ int(_hash(salt + 0x1234567)))
        self.draws = 0
        self.made: list[tuple[Tensor, Tensor]] = []

    def _next(self) -> tuple[Tensor, Tensor]:
        """32 bits (B,) int32, and 24 of them as a number from 0 up."""
        if self.draws == len(self.made):
            device = self.key.device
            numbers = torch.arange(self.draws + 1, self.draws + 1 + self.DRAWS, device=device)[:, None]
            bits = _hash(_hash(self.key + (numbers * 0x61C88647 % 2**31).to(torch.int32)))
            self.made += zip(bits, (bits >> 8) & 0xFFFFFF, strict=True)
        self.draws += 1
        return self.made[self.draws - 1]

    def bits(self) -> Tensor:
        return self._next()[0]

    def uniform(self, low: float, high: float) -> Tensor:
        """(B,) float32 in [low, high)."""
        return self._next()[1] * ((high - low) / 2**24) + low

    def log_uniform(self, low: float, high: float) -> Tensor:
        return torch.exp(self.uniform(math.log(low), math.log(high)))

    def chance(self, probability: float) -> Tensor:
        return self.uniform(0.0, 1.0) < probability

    def noise(self, shape: tuple[int, ...], sigma: float) -> Tensor:
        """(B, *shape) float32 of mean 0: the sum of four random bytes is near enough to a Gaussian.

        Half the cost of a scene, so: one round of mixing is enough for noise, in place, bytes added two at a time.
        """
        counter = torch.arange(math.prod(shape), dtype=torch.int32, device=self.key.device)
        x = self.bits()[:, None] + counter.mul_(0x3C6EF36F)
        x.bitwise_xor_((x >> 15).bitwise_and_(0x1FFFF)).mul_(0x2C1B3C6D)
        pairs = (x >> 8).bitwise_and_(0x00FF00FF).add_(x.bitwise_and_(0x00FF00FF))
        total = (pairs >> 16).add_(pairs.bitwise_and_(0xFFFF))
        return total.float().sub_(510).mul_(sigma / math.sqrt(4 * (256**2 - 1) / 12)).view(-1, *shape)


def _hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """(B,) each in 0..1 -> (B, 3) RGB."""
    k = torch.stack([(n + hue * 6) % 6 for n in (5, 3, 1)], -1)
    return value[:, None] * (1 - saturation[:, None] * torch.minimum(k, 4 - k).clamp(0, 1))


class _Canvas:
    """Layer numbers per pixel, and per layer what will be looked up: colour, texture, light, class, size bin."""

    def __init__(self, dice: _Dice, size: tuple[int, int]):
        self.dice, self.size = dice, size
        self.height, self.width = size
        self.scale = min(size) / 128
        self.thickness = self.scale**0.3  # thin structures stay thin in large pictures
        self.batch, self.device = len(dice.key), dice.key.device
        pixels = self.batch * self.height * self.width
        self.ids = torch.zeros(pixels + 1, dtype=torch.uint8, device=self.device)  # the last is no pixel
        self.first = torch.arange(self.batch, device=self.device)[:, None, None] * (self.height * self.width)
        self.looks: list[Tensor] = [torch.zeros(self.batch, 11, device=self.device)]
        self.classes: list[Tensor] = [torch.zeros(self.batch, dtype=torch.uint8, device=self.device)]
        self.bins: list[int] = [0]

    def window(self, cx: Tensor, cy: Tensor, reach_x: float, reach_y: float) -> tuple[Tensor, Tensor, Tensor]:
        """A window around all within reach of (cx, cy): x and y from the centre, and pixel numbers."""
        w, h = min(self.width, math.ceil(2 * reach_x) + 2), min(self.height, math.ceil(2 * reach_y) + 2)
        left = (cx - w / 2).floor().clamp(0, self.width - w).long()
        top = (cy - h / 2).floor().clamp(0, self.height - h).long()
        columns = left[:, None] + torch.arange(w, device=self.device)
        rows = top[:, None] + torch.arange(h, device=self.device)
        pixels = self.first + rows[:, :, None] * self.width + columns[:, None, :]
        return (columns + 0.5 - cx[:, None])[:, None, :], (rows + 0.5 - cy[:, None])[:, :, None], pixels

    def paint(
        self, pixels: Tensor, inside: Tensor, color: Tensor, label: int | Tensor, present: Tensor, **look
    ) -> None:
        """Put one layer on top of the others where `inside`, in the scenes where it is present."""
        # not pixels[inside]: to count them, a GPU would wait until all that it was asked before is done
        painted = torch.where(inside & present[:, None, None], pixels, len(self.ids) - 1)
        self.ids.index_fill_(0, painted.flatten(), len(self.looks))
        if isinstance(label, int):
            label = torch.full((self.batch,), label, device=self.device)
        self.classes.append(label.to(torch.uint8))
        self.bins.append(look.pop("size_bin", 0))
        self.looks.append(torch.cat([color, self._surface(**look)], 1))

    def _surface(self, texture: float = 0.0, light: float = 0.0, shadow: bool = False) -> Tensor:
        """(B, 8): stripes (x and y frequency, phase, amplitude), light (x and y slope, offset), casts a shadow."""
        frequency, angle = self.dice.uniform(0.35, 0.9) / self.scale, self.dice.uniform(0, math.pi)
        phase, tilt = self.dice.uniform(0, 2 * math.pi), self.dice.uniform(-0.5, 0.5)
        slope = light / (128 * self.scale)
        constants = [texture * torch.ones_like(phase), slope * torch.sin(tilt), -slope * torch.cos(tilt)]
        offset = -(constants[1] * self.width + constants[2] * self.height) / 2
        casts = torch.full_like(phase, float(shadow))
        return torch.stack(
            [frequency * torch.cos(angle), frequency * torch.sin(angle), phase, *constants, offset, casts], 1
        )


def _paint_shape(canvas: _Canvas, size_bin: str, probability: float) -> None:
    """Disc, square, triangle or star of equal area, so that only the outline tells the class.

    Folding the angle into one sector of an n-gon leaves a single half-plane to test; a disc is the unfolded case.
    """
    dice, (low, high) = canvas.dice, SIZE_BINS[size_bin]
    radius = dice.log_uniform(low, high) * canvas.scale / 2
    margin = {"big": 0.36, "mid": 0.14, "small": 0.06}[size_bin]
    cx = dice.uniform(margin, 1 - margin) * canvas.width
    cy = dice.uniform(margin, 1 - margin) * canvas.height
    kind = ((dice.bits() >> 8) & 3).long()  # 0 disc, 1 square, 2 triangle, 3 star
    corners = 4.0 - (kind == 2).float() + (kind == 3).float()
    # distance of the half-plane from the centre for a disc's area: square sqrt(pi)/2, triangle sqrt(pi/(3 sqrt 3))
    outer = 1.5 * radius  # the star: outer radius 1.5 r, inner half of it, hence 5 % more area
    inner_x, inner_y = 0.5 * math.cos(math.pi / 5) - 1, 0.5 * math.sin(math.pi / 5)
    lean = math.atan2(-inner_x, inner_y)
    reach = torch.stack([radius, math.sqrt(math.pi) / 2 * radius, 0.7776 * radius, outer * math.cos(lean)])
    edge = reach.gather(0, kind[None])[0][:, None, None]

    x, y, pixels = canvas.window(cx, cy, 0.79 * high * canvas.scale, 0.79 * high * canvas.scale)
    sector = (2 * math.pi / corners)[:, None, None]
    angle = torch.atan2(y, x) - dice.uniform(0, 2 * math.pi)[:, None, None]
    angle = (torch.remainder(angle + sector / 2, sector) - sector / 2).abs() - torch.where(
        kind == 3, lean, 0.0
    )[:, None, None]
    angle = angle * (kind != 0)[:, None, None]
    inside = torch.sqrt(x * x + y * y) * torch.cos(angle) < edge
    color = _hsv(dice.uniform(0, 1), dice.uniform(0.45, 0.85), dice.uniform(0.55, 1.0))
    canvas.paint(
        pixels, inside, color, kind + 1, dice.chance(probability), texture=0.07, light=0.35, shadow=True,
        size_bin=1 + list(SIZE_BINS).index(size_bin),
    )  # fmt: skip


def _paint_fence(canvas: _Canvas) -> None:
    """Pickets with two rails."""
    dice, s, t = canvas.dice, canvas.scale, canvas.thickness
    width, height = dice.uniform(0.35, 0.7) * canvas.width, dice.uniform(0.14, 0.22) * canvas.height
    cx, cy = dice.uniform(0.2, 0.8) * canvas.width, dice.uniform(0.35, 0.8) * canvas.height
    x, y, pixels = canvas.window(cx, cy, 0.35 * canvas.width, 0.11 * canvas.height)
    period, half = (dice.uniform(7, 11) * s)[:, None, None], (dice.uniform(0.9, 1.3) * t)[:, None, None]
    pickets = (torch.remainder(x, period) - period / 2).abs() < half
    rails = (y.abs() - 0.25 * height[:, None, None]).abs() < 0.9 * half
    frame = (x.abs() < width[:, None, None] / 2) & (y.abs() < height[:, None, None] / 2)
    color = _hsv(dice.uniform(0.04, 0.12), dice.uniform(0.3, 0.7), dice.uniform(0.35, 0.6))
    canvas.paint(pixels, (pickets | rails) & frame, color, 6, dice.chance(0.6))


def _paint_ring(canvas: _Canvas) -> None:
    """A ring whose hole shows what is behind."""
    dice = canvas.dice
    cx, cy = dice.uniform(0.12, 0.88) * canvas.width, dice.uniform(0.2, 0.88) * canvas.height
    radius = (dice.log_uniform(7, 20) * canvas.scale)[:, None, None]
    half = (dice.uniform(1.3, 2.0) * canvas.thickness)[:, None, None]
    reach = 20 * canvas.scale + 2 * canvas.thickness
    x, y, pixels = canvas.window(cx, cy, reach, reach)
    color = _hsv(dice.uniform(0, 1), dice.uniform(0.6, 1.0), dice.uniform(0.3, 0.6))
    canvas.paint(pixels, (torch.sqrt(x * x + y * y) - radius).abs() < half, color, 7, dice.chance(0.65))


def _paint_wire(canvas: _Canvas) -> None:
    """A sagging wire from edge to edge: a parabola, tested only in the few rows around it."""
    dice, s = canvas.dice, canvas.scale
    slope, sag = dice.uniform(-0.35, 0.35)[:, None, None], (dice.uniform(-0.004, 0.006) / s)[:, None, None]
    height = (dice.uniform(0.15, 0.8) * canvas.height)[:, None, None]
    half = (dice.uniform(0.8, 1.3) * canvas.thickness)[:, None, None]
    columns = torch.arange(canvas.width, device=canvas.device)[None, :, None]
    u = columns + 0.5 - canvas.width / 2
    center = height + slope * u + sag * u * u
    steepness = torch.sqrt(1 + (slope + 2 * sag * u) ** 2)  # vertical extent of a line of given thickness
    steepest = math.hypot(1, 0.35 + 2 * 0.006 / s * canvas.width / 2)
    k = math.ceil(1.3 * canvas.thickness * steepest) + 1
    rows = center.floor().long() + torch.arange(-k, k + 1, device=canvas.device)
    inside = ((rows + 0.5 - center).abs() < half * steepness) & (rows >= 0) & (rows < canvas.height)
    pixels = canvas.first + rows.clamp(0, canvas.height - 1) * canvas.width + columns
    color = _hsv(dice.uniform(0, 1), dice.uniform(0.1, 0.5), dice.uniform(0.08, 0.3))
    canvas.paint(pixels, inside, color, 5, dice.chance(0.75))


def _paint_pole(canvas: _Canvas) -> None:
    dice = canvas.dice
    cx, cy = dice.uniform(0.1, 0.9) * canvas.width, dice.uniform(0.35, 0.65) * canvas.height
    half, reach = dice.uniform(1.0, 1.6) * canvas.thickness, dice.uniform(0.15, 0.3) * canvas.height
    x, y, pixels = canvas.window(cx, cy, 1.6 * canvas.thickness, 0.3 * canvas.height)
    inside = (x.abs() < half[:, None, None]) & (y.abs() < reach[:, None, None])
    color = _hsv(dice.uniform(0, 1), dice.uniform(0.1, 0.5), dice.uniform(0.08, 0.3))
    canvas.paint(pixels, inside, color, 5, dice.chance(0.5))


def _paint_water(canvas: _Canvas, day: Tensor, probability: float) -> None:
    """A blue blob low in the picture: lake by day, ice by night. Nothing near it tells which."""
    dice, s = canvas.dice, canvas.scale
    cx, cy = dice.uniform(0.1, 0.9) * canvas.width, dice.uniform(0.72, 0.92) * canvas.height
    radius, flat = dice.uniform(13, 24) * s, dice.uniform(1.1, 1.7)
    x, y, pixels = canvas.window(cx, cy, 24 * 1.28 * s, 24 * 1.28 / 1.1 * s)
    y = y * flat[:, None, None]
    angle = torch.atan2(y, x)
    phases = dice.uniform(0, 6)[:, None, None], dice.uniform(0, 6)[:, None, None]
    outline = 1 + 0.18 * torch.sin(3 * angle + phases[0]) + 0.1 * torch.sin(5 * angle + phases[1])
    inside = torch.sqrt(x * x + y * y) < radius[:, None, None] * outline
    color = _hsv(dice.uniform(0.5, 0.6), dice.uniform(0.25, 0.5), dice.uniform(0.75, 0.95))
    canvas.paint(pixels, inside, color, torch.where(day, 8, 9), dice.chance(probability), light=0.2)


def _paint_marker(canvas: _Canvas, day: Tensor) -> None:
    """The sun, or a crescent moon, at the upper edge: labelled, so that the network learns to tell them apart."""
    dice, s = canvas.dice, canvas.scale
    radius = 8 * s
    cx, cy = dice.uniform(0.08, 0.92) * canvas.width, dice.uniform(13, 17) * s
    x, y, pixels = canvas.window(cx, cy, radius, radius)
    disc = x * x + y * y < radius**2
    bite = (x - 0.55 * radius) ** 2 + (y + 0.2 * radius) ** 2 < (0.8 * radius) ** 2
    inside = disc & (day[:, None, None] | ~bite)
    sun_or_moon = ((1.0, 0.3), (0.78, 0.34), (0.1, 0.62))
    color = torch.stack([torch.where(day, *channel) for channel in sun_or_moon], 1)
    canvas.paint(pixels, inside, color, torch.where(day, 10, 11), torch.ones_like(day))


def _ground(canvas: _Canvas) -> Tensor:
    """(B, 3, H, W): a pale two-colour gradient with soft clouds, less saturated than any object."""
    dice = canvas.dice
    hue = dice.uniform(0, 1)
    top = _hsv(hue, dice.uniform(0.04, 0.25), dice.uniform(0.8, 1.0))
    bottom = _hsv((hue + dice.uniform(-0.15, 0.15)) % 1, dice.uniform(0.04, 0.25), dice.uniform(0.68, 0.95))
    ramp = torch.linspace(0, 1, canvas.height, device=canvas.device)[:, None]
    clouds = torch.nn.functional.interpolate(dice.noise((3, 5, 5), 0.035), size=canvas.size, mode="bilinear")
    return top[:, :, None, None] + (bottom - top)[:, :, None, None] * ramp + clouds


def _render(canvas: _Canvas, noise: float) -> Tensor:
    """Look colour, texture, light and shadow up per pixel: (B, 3, H, W) uint8."""
    h, w = canvas.size
    ids = canvas.ids[:-1].view(canvas.batch, h * w)
    table = torch.stack(canvas.looks, 2)  # (B, 11, L)
    pixel = table.gather(2, ids.long()[:, None].expand(-1, table.shape[1], -1)).view(canvas.batch, -1, h, w)
    x = torch.arange(w, device=canvas.device) + 0.5
    y = (torch.arange(h, device=canvas.device) + 0.5)[:, None]
    stripes = torch.sin(pixel[:, 3] * x + pixel[:, 4] * y + pixel[:, 5]) * pixel[:, 6]
    light = 1 + pixel[:, 7] * x + pixel[:, 8] * y + pixel[:, 9]
    image = torch.where(
        (ids == 0).view(-1, 1, h, w), _ground(canvas), pixel[:, :3] * light[:, None] + stripes[:, None]
    )
    d = max(
        1, round(1.5 * canvas.scale)
    )  # whatever lies lower gets darker just right of and below a solid object
    order = ids.view(-1, h, w).to(torch.int16)
    caster = order * pixel[:, 10].to(torch.int16)
    shaded = caster[:, :-d, :-d] > order[:, d:, d:]
    image[:, :, d:, d:] *= 1 - 0.22 * shaded[:, None]
    if noise > 0:
        image += canvas.dice.noise((3, h, w), noise)
    return image.clamp_(0, 1).mul_(255).round_().to(torch.uint8)


def make_scenes(
    indices: Sequence[int] | Tensor,
    preset: str = "full",
    *,
    size: int | tuple[int, int] = 128,
    seed: int = 0,
    split: str = "train",
    device: torch.device | str = "cpu",
) -> Scenes:
    """Make the scenes with these indices.

    Args:
        indices: which scenes, any non-negative integers (the supply does not end).
        preset: a name of `PRESETS`.
        size: side, or (height, width), px; 16 at least.
        seed, split: other values give other scenes; any integer is a seed. The splits of a seed share no scene.
        device: where they are made.

    Raises:
        ValueError: an unknown preset or split, a size below 16 px, or no index.
    """
    settings, size = _check(preset, size, split)
    numbers = torch.as_tensor(indices, dtype=torch.int64).reshape(-1).to(device, non_blocking=True)
    if len(numbers) == 0:
        raise ValueError("make_scenes was given no index; pass at least one, as in make_scenes([0]).")
    canvas = _Canvas(_Dice(seed, split, numbers), size)
    for size_bin, places in zip(("big", "mid", "small"), settings.shapes, strict=True):
        for _ in range(places):
            _paint_shape(canvas, size_bin, 0.9 if size_bin == "big" else 0.8)
    if settings.context:
        day = canvas.dice.chance(0.5)
        _paint_water(canvas, day, 1.0)
        _paint_water(canvas, day, 0.5)
        _paint_marker(canvas, day)
    if settings.thin:
        for paint in (_paint_fence, _paint_ring, _paint_ring, _paint_wire, _paint_wire, _paint_pole):
            paint(canvas)
    return _finish(canvas, settings.noise)


def _check(preset: str, size: int | tuple[int, int], split: str) -> tuple[Preset, tuple[int, int]]:
    if preset not in PRESETS:
        raise ValueError(f"Unknown preset {preset!r}; choose one of {', '.join(PRESETS)}.")
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}; choose one of {', '.join(SPLITS)}.")
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 16:
        raise ValueError(f"A scene of {height} x {width} px is too small to draw; use 16 px or more.")
    return PRESETS[preset], (height, width)


def _finish(canvas: _Canvas, noise: float) -> Scenes:
    shape = (canvas.batch, *canvas.size)
    ids = canvas.ids[:-1].view(canvas.batch, -1).long()
    classes = torch.stack(canvas.classes, 1)
    bins = torch.tensor(canvas.bins, dtype=torch.uint8).to(canvas.device, non_blocking=True)
    bins = bins.expand(canvas.batch, -1)
    return Scenes(
        images=_render(canvas, noise),
        labels=classes.gather(1, ids).view(shape),
        instances=canvas.ids[:-1].view(shape),
        sizes=bins.gather(1, ids).view(shape),
        classes=classes,
    )


class SceneDataset(Dataset):
    """Scenes as a data set: item i is (image (3, H, W) uint8, mask (H, W) uint8), both tv_tensors.

    Args:
        preset, split, size, seed, device: as in `make_scenes`.
        length: number of scenes; more can be had at any time, the first ones stay the same.
        transforms: applied to (image, mask).
        cache: keep the scenes in memory once made (82 kB each at 128 px); without it they are made anew at each access.
    """

    labels = SCENES

    def __init__(
        self,
        preset: str = "full",
        split: str = "train",
        *,
        size: int | tuple[int, int] = 128,
        length: int = 2000,
        seed: int = 0,
        transforms: Callable | None = None,
        device: torch.device | str = "cpu",
        cache: bool = True,
    ):
        _check(preset, size, split)
        if length < 1:
            raise ValueError(f"A data set of {length} scenes is empty; ask for at least one.")
        self.preset, self.split, self.size, self.length, self.seed = preset, split, size, length, seed
        self.transforms, self.device, self.cache = transforms, device, cache
        self._kept: tuple[Tensor, Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return self.length

    def scenes(self, indices: Sequence[int]) -> Scenes:
        """The scenes themselves, with instances and boxes."""
        return make_scenes(
            indices, self.preset, size=self.size, seed=self.seed, split=self.split, device=self.device
        )

    def _get(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels and size maps."""
        if any(not -self.length <= i < self.length for i in indices):
            raise IndexError(f"This data set has scenes 0 to {self.length - 1}; asked for {list(indices)}.")
        indices = [i % self.length for i in indices]
        if not self.cache:
            made = self.scenes(indices)
            return made.images, made.labels, made.sizes
        if self._kept is None:
            chunks = [self.scenes(range(i, min(i + 32, self.length))) for i in range(0, self.length, 32)]
            fields = ("images", "labels", "sizes")
            self._kept = tuple(torch.cat([getattr(c, f) for c in chunks]) for f in fields)  # type: ignore[assignment]
        assert self._kept is not None
        images, labels, sizes = (kept[indices] for kept in self._kept)
        return images, labels, sizes

    def size_map(self, index: int) -> Tensor:
        """(H, W) uint8: 1, 2, 3 on small, mid and big shapes, 0 elsewhere (names in `SIZE_BINS`)."""
        return self._get([index])[2][0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        images, labels, _ = self._get(indices)
        items = [(tv_tensors.Image(i), tv_tensors.Mask(m)) for i, m in zip(images, labels, strict=True)]
        return [self.transforms(*item) for item in items] if self.transforms else items

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([index])[0]

    def __getstate__(self) -> dict:
        return {
            **self.__dict__,
            "_kept": None,
        }  # a worker process makes its scenes faster than it would receive them

    def __repr__(self) -> str:
        return (
            f"SceneDataset({self.preset!r}, {self.split!r}, size={self.size}, length={self.length}, seed={self.seed}, "
            f"transforms={self.transforms})"
        )
