"""What the tests of a2_fcn must tell apart: typical wrong answers, and right ones written in other ways."""

# name, answer cell, old text, new text, points lost by test. Q4 builds on Q3, Q5 on Q4.
MUTANTS = [
    ("padding forgotten", "q1_by_hand", "(pixels + 200)", "(pixels + 100)", {"test_q1": 2}),
    (
        "transposed convolution as if it were s n",
        "q1_by_hand",
        "32 * (coarse - 1) + 64",
        "32 * coarse",
        {"test_q1": 2},
    ),
    (
        "width before height",
        "q2_slide",
        "weight.reshape(-1, channels, height, width)",
        "weight.reshape(-1, channels, width, height).transpose(2, 3)",
        {"test_q2_kernel": 2, "test_q2_slide": 2},
    ),
    (
        "channels last",
        "q2_slide",
        "weight.reshape(-1, channels, height, width)",
        "weight.reshape(-1, height, width, channels).permute(0, 3, 1, 2)",
        {"test_q2_kernel": 2, "test_q2_slide": 2},
    ),
    ("bias forgotten", "q2_slide", ", bias)\n", ")\n", {"test_q2_slide": 2}),
    ("padded", "q2_slide", ", bias)\n", ", bias, padding=1)\n", {"test_q2_slide": 2}),
    (
        "centre of even kernels off by half",
        "q3_tent",
        "(size - 1) / 2",
        "size // 2",
        {"test_q3": 4, "test_q4": 3, "test_q5": 4},
    ),
    ("odd factors as even ones", "q3_tent", "2 * factor - factor % 2", "2 * factor", {"test_q3": 4}),
    (
        "normalised to sum 1",
        "q3_tent",
        "return line[:, None] * line[None, :]",
        "return line[:, None] * line[None, :] / line.sum() ** 2",
        {"test_q3": 4, "test_q4": 3, "test_q5": 4},
    ),
    (
        "a cone, no product",
        "q3_tent",
        "line[:, None] * line[None, :]",
        "torch.minimum(line[:, None], line[None, :])",
        {"test_q3": 4, "test_q4": 3, "test_q5": 4},
    ),
    (
        "channels mixed",
        "q4_upsample",
        ".expand(channels, 1, -1, -1)\n    return F.conv_transpose2d(scores, kernel, stride=factor, padding=factor // 2, groups=channels)",
        ".expand(channels, channels, -1, -1)\n    return F.conv_transpose2d(scores, kernel, stride=factor, padding=factor // 2)",
        {"test_q4": 3, "test_q5": 4},
    ),
    ("no padding", "q4_upsample", "padding=factor // 2", "padding=0", {"test_q4": 3, "test_q5": 4}),
    (
        "nearest neighbour",
        "q4_upsample",
        "return F.conv_transpose2d(scores, kernel, stride=factor, padding=factor // 2, groups=channels)",
        "return F.interpolate(scores, scale_factor=factor)",
        {"test_q4": 3, "test_q5": 4},
    ),
    (
        "corners aligned",
        "q4_upsample",
        "return F.conv_transpose2d(scores, kernel, stride=factor, padding=factor // 2, groups=channels)",
        'return F.interpolate(scores, scale_factor=factor, mode="bilinear", align_corners=True)',
        {"test_q4": 3, "test_q5": 4},
    ),
    (
        "stride 16 forgotten",
        "q5_fuse",
        "(scores16, scores8)",
        "(F.interpolate(scores32, scores16.shape[-2:]) * 0, scores8)",
        {"test_q5": 4},
    ),
    ("cut at the beginning", "q5_fuse", "[..., :height, :width]", "[..., -height:, -width:]", {"test_q5": 4}),
    (
        "finer scores upsampled twice",
        "q5_fuse",
        "return upsample(total, 8)",
        "return upsample(upsample(total, 4), 2)",
        {"test_q5": 4},
    ),
]

# Each replaces the answer cells it names.
CORRECT = [
    {
        "q2_slide": """
def as_kernel(weight, channels, height, width):
    return weight.view(weight.shape[0], channels, height, width).clone()

def slide(weight, bias, height, width, maps):
    windows = F.unfold(maps, (height, width))
    scores = torch.einsum("oc,ncl->nol", weight, windows) + bias[:, None]
    return scores.unflatten(2, (maps.shape[2] - height + 1, maps.shape[3] - width + 1))
""",
        "q3_tent": """
def tent(factor):
    side = [(i + 1) / factor - (0 if factor % 2 else 0.5 / factor) for i in range(factor)]
    line = torch.tensor(side + (side[-2::-1] if factor % 2 else side[::-1]))
    return torch.outer(line, line)
""",
        "q4_upsample": """
def upsample(scores, factor):
    wide = F.interpolate(F.pad(scores, (1, 1, 1, 1)), scale_factor=factor, mode="bilinear", align_corners=False)
    return wide[:, :, factor:-factor, factor:-factor]
""",
    },
    {
        "q1_by_hand": "units = pixels + 200\nfor _ in range(5):\n    units = -(-units // 2)\nsizes_by_hand = (units - 6, 32 * (units - 7) + 64)",
        "q4_upsample": """
def upsample(scores, factor):
    n, c, h, w = scores.shape
    kernel = tent(factor)[None, None].to(scores)
    one_by_one = scores.reshape(n * c, 1, h, w)
    full = F.conv_transpose2d(one_by_one, kernel, stride=factor)
    edge = factor // 2
    return full[..., edge : edge + factor * h, edge : edge + factor * w].reshape(n, c, factor * h, factor * w)
""",
        "q5_fuse": """
def fuse(scores32, scores16, scores8):
    def add(coarse, fine):
        doubled = upsample(coarse, 2)
        return doubled[:, :, : fine.size(2), : fine.size(3)] + fine

    return upsample(add(add(scores32, scores16), scores8), 8)
""",
    },
    {
        "q2_slide": """
def as_kernel(weight, channels, height, width):
    return torch.stack([w.reshape(channels, height, width) for w in weight])

def slide(weight, bias, height, width, maps):
    windows = maps.unfold(2, height, 1).unfold(3, width, 1)  # N, C, places, places, h, w
    flat = windows.permute(0, 2, 3, 1, 4, 5).flatten(3)
    return F.linear(flat, weight, bias).permute(0, 3, 1, 2)
""",
        "q3_tent": """
def tent(factor):
    size = 2 * factor - factor % 2
    kernel = torch.zeros(size, size)
    for i in range(size):
        for j in range(size):
            kernel[i, j] = (1 - abs(i - (size - 1) / 2) / factor) * (1 - abs(j - (size - 1) / 2) / factor)
    return kernel
""",
    },
]

YEARLY = {"test_q1": 2}  # points that last year's typed answers lose
