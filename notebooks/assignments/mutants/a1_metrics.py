"""What the tests of a1_metrics must tell apart: typical wrong answers, and right ones written in other ways."""

# name, answer cell, old text, new text, points lost by test. Q4 and Q6 build on Q2, Q3 and Q5.
MUTANTS = [
    ("Dice instead of IoU", "q1_by_hand", "- table[c, c])).item()", ") * 2).item()", {"test_q1": 2}),
    (
        "precision instead of IoU",
        "q1_by_hand",
        "(table[c].sum() + table[:, c].sum() - table[c, c])",
        "table[:, c].sum()",
        {"test_q1": 2},
    ),
    (
        "rows are predictions",
        "q2_count_pairs",
        ".reshape(classes, classes)",
        ".reshape(classes, classes).T",
        {"test_q2": 3},
    ),
    (
        "void counts as class 0",
        "q2_count_pairs",
        "counted = target != void",
        "target = target.masked_fill(target == void, 0)\n    counted = target >= 0",
        {"test_q2": 3, "test_q4": 3},
    ),
    (
        "void in the prediction counts as void",
        "q2_count_pairs",
        "target != void",
        "(target != void) & (predicted != 1)",
        {"test_q2": 3, "test_q4": 3, "test_q6": 3},
    ),
    (
        "absent classes lose their row",
        "q2_count_pairs",
        ", minlength=classes**2).reshape(classes, classes)",
        ").reshape(classes, -1)",
        {"test_q2": 3, "test_q4": 3, "test_q6": 3},
    ),
    (
        "uint8 arithmetic",
        "q2_count_pairs",
        "classes * target[counted].long() + predicted[counted].long()",
        "(classes * target[counted] + predicted[counted]).long()",
        {"test_q2": 3},
    ),
    (
        "void id hard-coded as 255",
        "q2_count_pairs",
        "target != void",
        "target != 255",
        {"test_q2": 3, "test_q4": 3},
    ),
    (
        "absent classes count as 0",
        "q3_average_iou",
        "(hits[union > 0] / union[union > 0]).mean().item()",
        "(hits / union.clamp(min=1)).mean().item()",
        {"test_q3": 3, "test_q6": 3},
    ),
    (
        "predicted-only classes left out",
        "q3_average_iou",
        "(hits[union > 0] / union[union > 0])",
        "(hits / union)[counts.sum(1) > 0]",
        {"test_q3": 3, "test_q4": 3},
    ),
    (
        "recall instead of IoU",
        "q3_average_iou",
        "counts.sum(0) + counts.sum(1) - hits",
        "counts.sum(1)",
        {"test_q3": 3, "test_q4": 3, "test_q6": 3},
    ),
    (
        "mean over pictures",
        "q4_score_dataset",
        "    counts = sum(count_pairs(target, predicted, classes, void) for target, predicted in pictures)\n    return average_iou(counts)",
        "    scores = [average_iou(count_pairs(t, p, classes, void)) for t, p in pictures]\n    return sum(scores) / len(scores)",
        {"test_q4": 3},
    ),
    ("only the first picture", "q4_score_dataset", "in pictures)", "in pictures[:1])", {"test_q4": 3}),
    (
        "half the width",
        "q5_boundary_band",
        '2 * width + 1, "stride": 1, "padding": width',
        'width + 1 | 1, "stride": 1, "padding": (width + 1 | 1) // 2',
        {"test_q5_band": 2, "test_q5_void": 2, "test_q6": 3},
    ),
    (
        "borders to void count",
        "q5_boundary_band",
        ".masked_fill(nothing, -torch.inf)[None], **window)[0]\n    smallest",
        "[None], **window)[0]\n    smallest",
        {"test_q5_void": 2},
    ),
    ("void belongs to the band", "q5_boundary_band", " & ~nothing", "", {"test_q5_void": 2}),
    (
        "only one side of the border",
        "q5_boundary_band",
        "(largest != smallest)",
        "(largest != labels)",
        {"test_q5_band": 2, "test_q5_void": 2, "test_q6": 3},
    ),
    (
        "the band of the prediction",
        "q6_score_near_borders",
        "boundary_band(target,",
        "boundary_band(predicted,",
        {"test_q6": 3},
    ),
    (
        "the whole picture",
        "q6_score_near_borders",
        "target[band], predicted[band]",
        "target, predicted",
        {"test_q6": 3},
    ),
]

# Each replaces the answer cells it names.
CORRECT = [
    {
        "q1_by_hand": "t = table.double()\niou_by_hand = tuple((t.diag() / (t.sum(0) + t.sum(1) - t.diag())).tolist())",
        "q2_count_pairs": """
def count_pairs(target, predicted, classes, void):
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    for t, p in zip(target.flatten().tolist(), predicted.flatten().tolist()):
        if t != void:
            counts[t, p] += 1
    return counts
""",
        "q3_average_iou": """
def average_iou(counts):
    scores = []
    for c in range(len(counts)):
        union = int(counts[c].sum() + counts[:, c].sum() - counts[c, c])
        if union:
            scores.append(int(counts[c, c]) / union)
    return sum(scores) / len(scores)
""",
        "q5_boundary_band": """
def boundary_band(target, width, void):
    height, breadth = target.shape
    band = torch.zeros(height, breadth, dtype=torch.bool)
    for i in range(height):
        for j in range(breadth):
            near = target[max(0, i - width) : i + width + 1, max(0, j - width) : j + width + 1]
            band[i, j] = target[i, j] != void and len(set(near[near != void].tolist())) > 1
    return band
""",
    },
    {
        "q2_count_pairs": """
import numpy as np

def count_pairs(target, predicted, classes, void):
    t, p = np.asarray(target).ravel().astype(int), np.asarray(predicted).ravel().astype(int)
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (t[t != void], p[t != void]), 1)
    return torch.from_numpy(counts)
""",
        "q3_average_iou": """
def average_iou(counts):
    counts = counts.double()
    iou = counts.diagonal() / (counts.sum(0) + counts.sum(1) - counts.diagonal())
    return iou.nanmean()
""",
        "q4_score_dataset": """
def score_dataset(pictures, classes, void):
    targets = torch.cat([t.flatten() for t, _ in pictures])
    predictions = torch.cat([p.flatten() for _, p in pictures])
    return average_iou(count_pairs(targets, predictions, classes, void))
""",
        "q6_score_near_borders": """
def score_near_borders(target, predicted, width, classes, void):
    outside = torch.where(boundary_band(target, width, void), target, void)
    return average_iou(count_pairs(outside, predicted, classes, void))
""",
    },
    {
        "q2_count_pairs": """
def count_pairs(target, predicted, classes, void):
    known = (target != void).flatten()
    t = torch.nn.functional.one_hot(target.flatten()[known].long(), classes)
    p = torch.nn.functional.one_hot(predicted.flatten()[known].long(), classes)
    return t.T @ p
""",
        "q5_boundary_band": """
import torch.nn.functional as F

def boundary_band(target, width, void):
    known = target != void
    seen = torch.zeros(target.shape)
    for label in target[known].unique():
        here = (target == label).float()
        seen += F.max_pool2d(F.pad(here[None, None], [width] * 4), 2 * width + 1, 1)[0, 0]
    return (seen > 1) & known
""",
    },
]

YEARLY = {"test_q1": 2}  # points that last year's typed answers lose
