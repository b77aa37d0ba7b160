"""Class names, colours and the void id.

A label map holds one class id per pixel, 0..K-1, and ``IGNORE_INDEX`` where the annotators gave no
answer ("void"): such pixels count neither in the loss nor in the metrics. Every data set of this
package uses the same void id, whatever its files use.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

IGNORE_INDEX = 255
IGNORE_COLOR = (200, 192, 180)  # light warm grey: no class has it, so void never looks like a label

Color = tuple[int, int, int]


@dataclass(frozen=True)
class LabelSet:
    """The classes of a data set: id ``i`` is called ``names[i]`` and drawn in ``colors[i]`` (RGB, 0..255).

    ``groups`` names sets of ids whose mean IoU is worth a number of its own, e.g. ``thin=(5, 6, 7)``.

    Raises:
        ValueError: names and colours differ in number, or a group holds an id that does not exist.
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...]
    groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if len(self.names) != len(self.colors):
            raise ValueError(
                f"{len(self.names)} class names but {len(self.colors)} colours: give one colour a class."
            )
        for group, ids in self.groups.items():
            if wrong := [i for i in ids if not 0 <= i < self.num_classes]:
                raise ValueError(
                    f"Group {group!r} holds {wrong}, but class ids are 0..{self.num_classes - 1}."
                )

    @property
    def num_classes(self) -> int:
        """Number of classes K, void not counted."""
        return len(self.names)

    def colorize(self, mask: ArrayLike) -> np.ndarray:
        """Paint an integer label map (H, W), numpy or CPU tensor, as uint8 RGB (H, W, 3); void is light grey.

        Raises:
            TypeError: the map holds no integers.
            ValueError: the map holds an id that is neither a class nor void.
        """
        mask = np.asarray(mask)
        if not np.issubdtype(mask.dtype, np.integer):
            raise TypeError(f"A label map holds integer ids, got {mask.dtype}: pass logits.argmax(dim=0).")
        unknown = np.setdiff1d(mask, [*range(self.num_classes), IGNORE_INDEX])
        if unknown.size:
            raise ValueError(
                f"The label map holds {unknown[:5].tolist()}; class ids are 0..{self.num_classes - 1} "
                f"and {IGNORE_INDEX} for void."
            )
        palette = np.full((IGNORE_INDEX + 1, 3), IGNORE_COLOR, np.uint8)
        palette[: self.num_classes] = self.colors
        return palette[mask]


def voc_palette(num_classes: int) -> tuple[Color, ...]:
    """Colours of the PASCAL VOC development kit: the bits of the id, dealt in turn to red, green and blue.

    Bit 0 of the id becomes the highest bit of red, bit 1 of green, bit 2 of blue, bit 3 the next bit
    of red and so on; neighbouring ids therefore look very different.
    """

    def channel(label: int, offset: int) -> int:
        return sum(((label >> (3 * bit + offset)) & 1) << (7 - bit) for bit in range(8))

    return tuple((channel(i, 0), channel(i, 1), channel(i, 2)) for i in range(num_classes))


_VOC_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *(
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
    ),
)
VOC = LabelSet(_VOC_NAMES, voc_palette(len(_VOC_NAMES)))

CAMVID = LabelSet(
    names=(
        *("sky", "building", "pole", "road", "pavement", "tree"),
        *("sign", "fence", "car", "pedestrian", "bicyclist"),
    ),
    colors=(
        *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0)),
        *((192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
    ),
    groups={"thin": (2, 6, 7)},
)

PETS = LabelSet(names=("background", "pet"), colors=((0, 0, 0), (230, 120, 0)))

# Okabe and Ito's colours, moved apart until every pair (void included) also differs clearly, CIELAB
# distance above 18, in simulated red- and green-blindness.
SCENES = LabelSet(
    names=(
        *("ground", "disc", "square", "triangle", "star", "wire"),
        *("fence", "ring", "lake", "ice", "sun", "moon"),
    ),
    colors=(
        *((248, 246, 240), (203, 78, 0), (9, 107, 201), (18, 167, 95), (181, 124, 179), (0, 0, 0)),
        *((131, 61, 44), (104, 29, 132), (0, 84, 105), (154, 218, 255), (255, 252, 89), (102, 120, 110)),
    ),
    groups={"shapes": (1, 2, 3, 4), "thin": (5, 6, 7), "context": (8, 9)},
)
