"""Dense CRF, with which DeepLab v1 (§4.2) and v2 (§3.3) sharpened their maps; Krähenbühl & Koltun, NIPS 2011.

Every pixel i talks to every other, and believes most those that are near and alike. With f the features of a pixel,

    f_i = (x_i / theta_alpha, y_i / theta_alpha, r_i / theta_beta, g_i / theta_beta, b_i / theta_beta)   for w1
    f_i = (x_i / theta_gamma, y_i / theta_gamma)                                                         for w2
    K_ij = exp(-|f_i - f_j|^2 / 2)
    Q_i(l) <- softmax over l of  log p_i(l) + sum of w * sum_j K'_ij Q_j(l) over both kernels      (starts at Q = p)

is a step of mean field with the Potts model: labels that differ cost w K, which up to a constant is equal labels
gaining w K. Pixels are counted from 0, colours go from 0 to 255. K' is K after normalising. With D = diag(sum_j K_ij)

    "after"       D^-1 K            a weighted mean of Q: what DeepLab's own code and that of 2011 compute
    "symmetric"   D^-1/2 K D^-1/2   what pydensecrf does unless told otherwise, and most code on top of it

The same weights mean slightly different things in each: one label in a hundred to one in a thousand differs. As in
all released code, and unlike in the papers' sums, j = i is included: each pixel also believes itself a little.

K has (H W)^2 entries. The loop needs only products K V, and may get them in any of these ways (`BACKENDS`):

    "lattice"     on a permutohedral lattice, in time linear in the pixels: approximately, as the papers did
    "exact"       a few rows of K at a time, never stored: seconds at 128 x 128 pixels, minutes at 321 x 321
    "attention"   the same through scaled dot product attention, which D^-1 K is (see `attention`)
    "pydensecrf"  the compiled reference, where it is installed; it runs the whole loop and has no gradient

Use float32 at least: rounded to bfloat16, features give another answer.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from deeplab_edu.inference import Photograph, read_image

Normalization = Literal["after", "symmetric"]
Backend = Literal["lattice", "exact", "attention", "pydensecrf"]
BACKENDS = get_args(Backend)
Filter = Callable[[Tensor], Tensor]  # V (N, C) -> a product with K, or with K', (N, C)

FLOOR = 1e-5
"""Probabilities are raised to this before their logarithm is taken, as pydensecrf's `unary_from_softmax` does: where
the network is certain, and wrong, its neighbours can still be heard."""


@dataclass(frozen=True)
class DenseCRF:
    """Mean field in a fully connected CRF; the symbols are those of DeepLab v1, §4.2 (see the module's text).

    Args:
        w1, theta_alpha, theta_beta: weight of the kernel of position and colour; its width in pixels, and in colours.
        w2, theta_gamma: weight of the kernel of position alone; its width in pixels.
        iterations: steps of mean field; the papers take 10.
        normalization: "after" as DeepLab's own code, or "symmetric" as pydensecrf's default.
        backend: how the sums over all pixels are computed.

    Raises ValueError for a weight below zero, a width of zero or below, or a name that does not exist.
    """

    w1: float
    theta_alpha: float
    theta_beta: float
    w2: float
    theta_gamma: float
    iterations: int = 10
    normalization: Normalization = "after"
    backend: Backend = "lattice"

    def __post_init__(self) -> None:
        for name in ("w1", "w2"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is a weight, zero or above, not {getattr(self, name)!r}")
        for name in ("theta_alpha", "theta_beta", "theta_gamma"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is a width above zero, not {getattr(self, name)!r}")
        if not isinstance(self.iterations, int) or self.iterations < 0:
            raise ValueError(f"iterations is a whole number from 0 up, not {self.iterations!r}")
        for name, choices in {"normalization": get_args(Normalization), "backend": BACKENDS}.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"no {name} {getattr(self, name)!r}; choose from {', '.join(choices)}")

    def refine(self, image: Photograph, probabilities: Tensor) -> Tensor:
        """Probabilities (C, H, W) that follow the edges of `image` more closely than those given.

        `image` is a photograph as in `segment`: uint8, (3, H, W) as a tensor or (H, W, 3) as an array, or a PIL image
        or a path; not normalised. `probabilities` (C, H, W) are a network's, upsampled to the image and after
        softmax. The result is on their device, in their precision, float32 at least. But for backend "pydensecrf" it
        can be differentiated with respect to them.

        Raises TypeError for an image that is not uint8 or probabilities that are not floats; ValueError for shapes
        that do not fit and for numbers that are no probabilities; ImportError if pydensecrf is wanted and missing.
        """
        pixels = check_image(image)
        check_probabilities(probabilities, pixels)
        if self.backend == "pydensecrf":
            return self.refine_by_pydensecrf(pixels, probabilities)
        with torch.autocast(probabilities.device.type, enabled=False):
            scores = log_scores(probabilities)
            messages = self.messages(pixels.to(scores.device), scores.dtype)
            beliefs = mean_field(scores, messages, self.iterations)
        return beliefs.T.reshape(probabilities.shape)

    def messages(self, pixels: Tensor, dtype: torch.dtype) -> list[tuple[float, Filter]]:
        """The weight and the normalised kernel of each term that has a weight."""
        by_color = (self.w1, features(pixels, dtype, self.theta_alpha, self.theta_beta))
        by_place = (self.w2, features(pixels, dtype, self.theta_gamma))
        return [
            (w, normalized(f, self.normalization, self.backend)) for w, f in (by_color, by_place) if w > 0
        ]

    def refine_by_pydensecrf(self, pixels: Tensor, probabilities: Tensor) -> Tensor:
        try:
            from pydensecrf import densecrf
        except ImportError as error:
            raise ImportError(
                "pydensecrf is not installed: try `make crf`, or take backend 'lattice', which computes the same"
            ) from error
        classes, height, width = probabilities.shape
        scores = log_scores(probabilities.detach().float().cpu())
        options = {"normalization": getattr(densecrf, f"NORMALIZE_{self.normalization.upper()}")}
        photograph = np.ascontiguousarray(pixels.cpu().movedim(0, -1).numpy())
        crf = densecrf.DenseCRF2D(width, height, classes)
        crf.setUnaryEnergy(np.ascontiguousarray(-scores.T.numpy()))
        if self.w1 > 0:
            widths = {"sxy": self.theta_alpha, "srgb": self.theta_beta}
            crf.addPairwiseBilateral(**widths, rgbim=photograph, compat=self.w1, **options)
        if self.w2 > 0:
            crf.addPairwiseGaussian(sxy=self.theta_gamma, compat=self.w2, **options)
        beliefs = torch.from_numpy(np.array(crf.inference(self.iterations)))  # (C, N)
        return beliefs.reshape(probabilities.shape).to(probabilities.device)


PRESETS = {
    "v1": DenseCRF(4, 49, 5, 3, 3),
    "v1-121": DenseCRF(4, 121, 5, 3, 3, normalization="symmetric"),
    "v2": DenseCRF(4, 67, 3, 3, 1, normalization="symmetric"),
}
"""Values for networks trained on PASCAL VOC. The papers give the ranges that were searched on 100 images, not what was
found: for v1, w1 5 to 10, theta_alpha 50 to 100, theta_beta 3 to 10; for v2, 3 to 6, 30 to 100, 3 to 6; w2 = 3 and
theta_gamma = 3 in both. Two settings circulate for v1. "v1" is that of DeepLab's own `run_densecrf.sh` for VOC as
published with v2 (an earlier state of it has 5, 50, 3); "v1-121" that of reproductions on top of pydensecrf
(CoinCheung/Deeplab-Large-FOV, `utils/crf.py`). "v2" is that of kazuto1011/deeplab-pytorch (`configs/voc12.yaml`). Each
has the normalisation it was used with. Widths in pixels are for images about 500 pixels wide: scale them with yours."""


def mean_field(scores: Tensor, messages: list[tuple[float, Filter]], iterations: int) -> Tensor:
    """Q (N, C) after some parallel updates, from scores log p (N, C) and weighted kernels K'."""
    beliefs = scores.softmax(1)
    for _ in range(iterations):
        beliefs = (scores + sum(weight * kernel(beliefs) for weight, kernel in messages)).softmax(1)
    return beliefs


def log_scores(probabilities: Tensor) -> Tensor:
    """(C, H, W) -> log p (H W, C), in float32 or float64."""
    wide = probabilities.to(torch.promote_types(probabilities.dtype, torch.float32))
    return wide.clamp(min=FLOOR).log().flatten(1).T.contiguous()


def features(pixels: Tensor, dtype: torch.dtype, space: float, color: float | None = None) -> Tensor:
    """f (N, 2), places in units of `space`; or (N, 5), with colours in units of `color`; N = H W."""
    _, height, width = pixels.shape
    rows, columns = torch.arange(height, device=pixels.device), torch.arange(width, device=pixels.device)
    places = torch.cartesian_prod(rows, columns).flip(1).to(dtype) / space  # x before y
    if color is None:
        return places
    return torch.cat([places, pixels.to(dtype).flatten(1).T / color], 1)


def normalized(features: Tensor, normalization: Normalization, backend: Backend) -> Filter:
    """V -> K' V for features (N, d)."""
    ones = features.new_ones(len(features), 1)
    if backend == "attention":
        average = attention(features)
        if normalization == "after":
            return average
        root = exact(features)(ones).sqrt()
        return lambda values: root * average(values / root)  # D^-1/2 K D^-1/2 = D^1/2 (D^-1 K) D^-1/2
    kernel = Lattice(features) if backend == "lattice" else exact(features)
    mass = kernel(ones)
    if normalization == "after":
        return lambda values: kernel(values) / mass
    root = mass.sqrt()
    return lambda values: kernel(values / root) / root


TILE = 2**22
"""Entries of K that `exact` holds at a time: 16 MB in float32."""


def exact(features: Tensor) -> Filter:
    """V -> K V, some rows of K at a time. Time grows with N^2 and memory with N, unless a gradient is wanted."""
    f = features - features.mean(0)  # smaller numbers, less rounding
    half, one = (f**2).sum(1, keepdim=True) / 2, torch.ones_like(f[:, :1])
    # q_i . k_j = -|f_i - f_j|^2 / 2
    queries, keys = torch.cat([f, -half, one], 1), torch.cat([f, one, -half], 1)
    rows = max(1, TILE // len(f))

    def kernel(values: Tensor) -> Tensor:
        # exp of less than -80 would be a denormal number, which processors handle many times slower
        tiles = ((q @ keys.T).clamp_(-80, 0).exp_() for q in queries.split(rows))
        return torch.cat([tile @ values for tile in tiles])

    return kernel


def attention(features: Tensor) -> Filter:
    """V -> D^-1 K V as self-attention with fixed queries and keys; exact, without ever storing K.

    K_ij = exp(f_i . f_j - |f_j|^2 / 2) times something that depends on i alone, which dividing by the sum of the row
    removes. So row i of D^-1 K is a softmax over j: queries (f_i, 1), keys (f_j, -|f_j|^2 / 2).
    """
    f = features - features.mean(0)
    queries = torch.cat([f, torch.ones_like(f[:, :1])], 1)
    keys = torch.cat([f, -(f**2).sum(1, keepdim=True) / 2], 1)

    def average(values: Tensor) -> Tensor:
        # torch's fused kernels, which do without the (N, N) matrix, want equal widths that are multiples of 8
        width = 8 * math.ceil(max(queries.shape[1], values.shape[1]) / 8)
        q, k, v = (F.pad(x, (0, width - x.shape[1]))[None, None] for x in (queries, keys, values))
        return F.scaled_dot_product_attention(q, k, v, scale=1.0)[0, 0, :, : values.shape[1]]

    return average


class Lattice:
    """V -> K V, nearly and up to a constant, on the permutohedral lattice: Adams, Baek & Davis, Eurographics 2010.

    Features (N, d) are points of a space that is divided into simplices, the d-dimensional triangles, of d + 1
    vertices each. Every point splats its values on the vertices around it, a blur spreads them from vertex to vertex
    along d + 1 directions, and every point slices its result from the same vertices (§3). Only vertices next to a
    point exist, the others count as zero. That, and the order of the directions, are as in Krähenbühl's code inside
    pydensecrf, so that results agree to rounding.
    """

    def __init__(self, features: Tensor) -> None:
        d = features.shape[1]
        corner, rank, self.shares = enclosing_simplex(elevate(features))
        # vertex k: from the corner, the d + 1 - k furthest coordinates go up by k, the others down by d + 1 - k
        step = torch.arange(d + 1, device=features.device)[:, None]
        vertices = torch.stack([corner + torch.where(rank <= d - k, k, k - d - 1) for k in step], 1)
        codes, strides = number(vertices[..., :d])  # coordinates sum to zero: the last one is known
        present, self.vertex = codes.unique(return_inverse=True)  # (M,), (N, d + 1)
        self.neighbours = [
            neighbours(present, delta)
            for delta in (*((d + 1) * stride - strides.sum() for stride in strides), -strides.sum())
        ]

    def __call__(self, values: Tensor) -> Tensor:
        on_lattice = values.new_zeros(len(self.neighbours[0]), values.shape[1])
        for vertex, share in zip(self.vertex.T, self.shares.T):
            on_lattice.index_add_(0, vertex, share[:, None] * values)
        for pair in self.neighbours:  # 1/2, 1, 1/2 along each direction
            on_lattice = on_lattice + 0.5 * F.embedding_bag(pair, on_lattice, mode="sum")
        return F.embedding_bag(self.vertex, on_lattice, per_sample_weights=self.shares, mode="sum")


def elevate(features: Tensor) -> Tensor:
    """Features (N, d) on the plane of R^(d+1) where coordinates sum to zero (§3.1), scaled to the blur's width."""
    d = features.shape[1]
    count = torch.arange(1, d + 1, dtype=features.dtype, device=features.device)
    basis = features.new_ones(d + 1, d).triu() - F.pad(count.diag(), (0, 0, 1, 0))
    return (features * (d + 1) * math.sqrt(2 / 3) / (count * (count + 1)).sqrt()) @ basis.T


def enclosing_simplex(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The simplex around each of the elevated points (N, d + 1): its corner, ranks and barycentric shares (§3.2).

    The corner (N, d + 1), int64, is the vertex whose coordinates are multiples of d + 1; rank (N, d + 1) numbers the
    coordinates by how far the point lies beyond it, furthest first; shares (N, d + 1) belong to vertices 0 to d.
    """
    sides = points.shape[1]
    multiple = (points / sides).round()
    residual = points - sides * multiple
    furthest_first = residual.argsort(dim=1, descending=True, stable=True)
    rank = furthest_first.argsort(dim=1) + multiple.sum(1, keepdim=True).long()
    wrapped = rank % sides  # rounding may leave the plane: coordinates move until they sum to zero again
    corner = sides * multiple.long() + wrapped - rank
    ascending = ((points - corner) / sides).sort(1).values
    first = 1 - (ascending[:, -1:] - ascending[:, :1])
    return corner, wrapped, torch.cat([first, ascending.diff(dim=1)], 1)


def number(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Integer vectors (..., d) as one int64 each, with room around them; and what a step in each coordinate adds."""
    d = keys.shape[-1]
    keys = keys - keys.flatten(0, -2).amin(0) + (d + 1)
    radix = keys.flatten(0, -2).amax(0) + (d + 2)
    if radix.double().log2().sum() > 62:
        raise ValueError(
            "theta is so small that the lattice has more vertices than can be numbered: enlarge it"
        )
    strides = F.pad(radix[:-1].cumprod(0), (1, 0), value=1)
    return (keys * strides).sum(-1), strides


def neighbours(codes: Tensor, delta: Tensor) -> Tensor:
    """Rows of the vertices `delta` on either side of each of M sorted codes, (M + 1, 2); row M is no vertex at all."""
    last = len(codes)
    sides = torch.stack([codes + delta, codes - delta], 1)
    found = torch.searchsorted(codes, sides).clamp(max=last - 1)
    return F.pad(torch.where(codes[found] == sides, found, last), (0, 0, 0, 1), value=last)


def check_image(image: Photograph) -> Tensor:
    """The image as uint8 (3, H, W)."""
    dtype = str(getattr(image, "dtype", "uint8")).removeprefix("torch.")
    if dtype != "uint8":
        raise TypeError(
            f"colours are compared as they are in a photograph, uint8 from 0 to 255, not as {dtype}"
        )
    return read_image(image)


def check_probabilities(probabilities: Tensor, pixels: Tensor) -> None:
    if not isinstance(probabilities, Tensor) or not probabilities.is_floating_point():
        kind = probabilities.dtype if isinstance(probabilities, Tensor) else type(probabilities).__name__
        raise TypeError(f"probabilities are a float tensor (C, H, W), not {kind}")
    shape, size = tuple(probabilities.shape), tuple(pixels.shape[1:])
    if probabilities.ndim != 3 or probabilities.shape[0] == 0:
        raise ValueError(f"probabilities of one image have shape (C, H, W), not {shape}")
    if shape[1:] != size:
        raise ValueError(
            f"the image has {size} pixels, the probabilities {shape[1:]}: upsample the logits first"
        )
    if not probabilities.isfinite().all():
        raise ValueError(
            "the probabilities hold NaN or infinity: is something wrong with the network's scores?"
        )
    off = (probabilities.sum(0) - 1).abs().max().item()
    if probabilities.min() < 0 or off > 0.01:
        raise ValueError(
            "probabilities are at least zero and sum to one over classes: take logits.softmax(0)"
        )
