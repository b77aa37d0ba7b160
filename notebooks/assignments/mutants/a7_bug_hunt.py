"""What the tests of a7_bug_hunt must tell apart: each fault left in, half mended, and right repairs of other kinds."""

# name, answer cell, old text, new text, points lost by test
MUTANTS = [
    (
        "mask bilinear",
        "q1_resize",
        'size, mode="nearest-exact")',
        'size, mode="bilinear", align_corners=False)',
        {"test_q1": 2},
    ),
    (
        "mask bilinear, rounded",
        "q1_resize",
        'size, mode="nearest-exact")[0, 0]',
        'size, mode="bilinear")[0, 0].round()',
        {"test_q1": 2},
    ),
    (
        "picture nearest too",
        "q1_resize",
        'size, mode="bilinear", align_corners=False)[0]\n',
        'size, mode="nearest")[0]\n',
        {"test_q1": 2},
    ),
    ("void trained on", "q2_loss", "losses[target != VOID].mean()", "losses.mean()", {"test_q2": 2}),
    (
        "void zeroed, but still counted",
        "q2_loss",
        "losses[target != VOID].mean()",
        "losses.masked_fill(target == VOID, 0).mean()",
        {"test_q2": 2},
    ),
    (
        "sum instead of mean",
        "q2_loss",
        "losses[target != VOID].mean()",
        "losses[target != VOID].sum()",
        {"test_q2": 2},
    ),
    (
        "averaged over batches",
        "q3_score",
        "        known = target != VOID",
        "        hits, union = torch.zeros(classes), torch.zeros(classes)\n        known = target != VOID",
        {"test_q3": 2},
    ),
    (
        "void in the union",
        "q3_score",
        "(truly | called).sum()",
        "(truly | (predicted == c)).sum()",
        {"test_q3": 2},
    ),
    (
        "absent classes as 0",
        "q3_score",
        "return (hits[union > 0] / union[union > 0])",
        "return (hits / union.clamp(min=1))",
        {"test_q3": 2},
    ),
    ("rates not switched", "q4_rates", "rate * 16 // output_stride", "rate", {"test_q4": 2}),
    (
        "rates the wrong way",
        "q4_rates",
        "rate * 16 // output_stride",
        "rate * output_stride // 16",
        {"test_q4": 2},
    ),
    ("always doubled", "q4_rates", "rate * 16 // output_stride", "rate * 2", {"test_q4": 2}),
    ("momentum is the decay", "q5_norm", "momentum=1 - decay", "momentum=decay", {"test_q5": 2}),
    ("PyTorch's default", "q5_norm", "momentum=1 - decay", "momentum=0.1", {"test_q5": 2}),
    ("corners not aligned", "q6_upsample", "align_corners=True", "align_corners=False", {"test_q6": 2}),
    (
        "by a factor of 8",
        "q6_upsample",
        'logits, size, mode="bilinear", align_corners=True',
        'logits, [8 * n for n in logits.shape[2:]], mode="bilinear", align_corners=True',
        {"test_q6": 2},
    ),
    ("ReLU in place", "q7_residual", "F.relu(x)", "F.relu(x, inplace=True)", {"test_q7": 2}),
    ("first ReLU left out", "q7_residual", "y = F.relu(x)", "y = x", {"test_q7": 2}),
    ("divided twice", "q8_accumulate", "loss.backward()", "(loss / len(inputs)).backward()", {"test_q8": 2}),
    ("not divided", "q8_accumulate", " / len(parts)", "", {"test_q8": 2}),
    (
        "only the last part",
        "q8_accumulate",
        "loss.backward()",
        "weight.grad = None\n        loss.backward()",
        {"test_q8": 2},
    ),
    (
        "shares of what is new",
        "q9_by_hand",
        "[0.9997**steps, 0.9**steps]",
        "[1 - 0.9997**steps, 1 - 0.9**steps]",
        {"test_q9": 2},
    ),
    ("exchanged", "q9_by_hand", "[0.9997**steps, 0.9**steps]", "[0.9**steps, 0.9997**steps]", {"test_q9": 2}),
]

# Each replaces the answer cells it names.
CORRECT = [
    {
        "q1_resize": """
def resize_pair(image, mask, size):
    image = F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]
    rows = ((torch.arange(size[0]) + 0.5) * mask.shape[0] / size[0]).long()
    columns = ((torch.arange(size[1]) + 0.5) * mask.shape[1] / size[1]).long()
    return image, mask[rows][:, columns]
""",
        "q2_loss": """
def pixel_loss(logits, target):
    return F.cross_entropy(logits, target, ignore_index=VOID)
""",
        "q5_norm": """
def batch_norm(channels, decay=0.9997):
    norm = nn.BatchNorm2d(channels)
    norm.momentum = 1.0 - decay
    return norm
""",
        "q7_residual": """
def residual(x, weight1, weight2):
    y = F.relu(x.clone(), inplace=True)
    y = F.relu(F.conv2d(y, weight1, padding=1), inplace=True)
    return x + F.conv2d(y, weight2, padding=1)
""",
    },
    {
        "q3_score": """
def score(batches, classes):
    counts = torch.zeros(classes, classes, dtype=torch.long)
    for target, predicted in batches:
        known = target != VOID
        pairs = target[known] * classes + predicted[known]
        counts += torch.bincount(pairs, minlength=classes**2).view(classes, classes)
    hits = counts.diag().double()
    return (hits / (counts.sum(0) + counts.sum(1) - hits)).nanmean().item()
""",
        "q6_upsample": """
def to_pixels(logits):
    return nn.UpsamplingBilinear2d(size=[8 * n - 7 for n in logits.shape[2:]])(logits)
""",
        "q8_accumulate": """
def accumulate(weight, parts):
    inputs, classes = torch.cat([i for i, _ in parts]), torch.cat([c for _, c in parts])
    weight = weight.clone().requires_grad_()
    F.cross_entropy(inputs @ weight, classes).backward()
    return weight.grad
""",
    },
    {
        "q2_loss": """
def pixel_loss(logits, target):
    known = target != VOID
    losses = F.cross_entropy(logits, target.where(known, 0), reduction="none")
    return (losses * known).sum() / known.sum()
""",
        "q4_rates": """
def pyramid_rates(output_stride, rates=(6, 12, 18)):
    factor = {8: 2, 16: 1, 32: 0.5}[output_stride]
    return tuple(int(factor * rate) for rate in rates)
""",
        "q8_accumulate": """
def accumulate(weight, parts):
    weight = weight.clone().requires_grad_()
    for inputs, classes in parts:
        F.cross_entropy(inputs @ weight, classes, reduction="sum").backward()
    return weight.grad / sum(len(classes) for _, classes in parts)
""",
        "q9_by_hand": "from math import exp, log\n\nshares = (exp(steps * log(0.9997)), 0.0)",
    },
]

YEARLY = {"test_q9": 2}  # points that last year's typed answers lose
