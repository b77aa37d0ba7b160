"""What the tests of a3_receptive_fields must tell apart: typical wrong answers, and right ones written in other ways."""

# name, answer cell, old text, new text, points lost by test. Q4's solution uses Q3.
MUTANTS = [
    ("rate forgotten by hand", "q1_by_hand", "2 * 2 * rate", "2 * 2", {"test_q1": 2}),
    ("stride before it acts", "q1_by_hand", "2 * 2 * rate", "2 * rate", {"test_q1": 2}),
    ("rate forgotten", "q2_field", "(kernel - 1) * rate * step", "(kernel - 1) * step", {"test_q2": 4}),
    (
        "effective kernel k + (k - 1) r",
        "q2_field",
        "(kernel - 1) * rate * step",
        "(kernel - 1) * (rate + 1) * step",
        {"test_q2": 4},
    ),
    (
        "stride of this layer already counted",
        "q2_field",
        "size += (kernel - 1) * rate * step",
        "size += (kernel - 1) * rate * step * stride",
        {"test_q2": 4},
    ),
    ("padding in units", "q2_field", "padding * step", "padding", {"test_q2": 4}),
    ("layers from the output", "q2_field", "in network:", "in reversed(network):", {"test_q2": 4}),
    (
        "the whole interval",
        "q3_taps",
        "return sorted(seen)",
        "return [*range(min(seen), max(seen) + 1)]",
        {"test_q3": 4, "test_q4": 4},
    ),
    (
        "through padding in between",
        "q3_taps",
        "{u for u in read if 0 <= u < length}",
        "read\n    seen = {u for u in seen if 0 <= u < pixels}",
        {"test_q3": 4},
    ),
    ("pixels outside the picture", "q3_taps", "0 <= u < length", "True", {"test_q3": 4}),
    (
        "layers in the wrong order",
        "q3_taps",
        "in zip(\n        reversed(network)",
        "in zip(\n        network",
        {"test_q3": 4},
    ),
    (
        "only the outermost taps",
        "q3_taps",
        "for i in range(kernel)}",
        "for i in (0, kernel - 1)}",
        {"test_q3": 4, "test_q4": 4},
    ),
    (
        "holes of one layer after another",
        "q4_holes",
        "return 2 * reach + 1 - len(seen)",
        "return sum(2 * (rate - 1) for rate in rates)",
        {"test_q4": 4},
    ),
    (
        "the largest rate decides",
        "q4_holes",
        "return 2 * reach + 1 - len(seen)",
        "return 2 * (max(rates) - 1) if len(rates) == 1 or min(rates) > 1 else 0",
        {"test_q4": 4},
    ),
    (
        "holes on one side",
        "q4_holes",
        "return 2 * reach + 1 - len(seen)",
        "return (2 * reach + 1 - len(seen)) // 2",
        {"test_q4": 4},
    ),
    ("rate not mended", "q5_center", "(kernel - 1) * rate / 2", "(kernel - 1) / 2", {"test_q5_rate": 2}),
    (
        "whole-number division not mended",
        "q5_center",
        "(kernel - 1) * rate / 2",
        "(kernel - 1) // 2 * rate",
        {"test_q5_even": 2},
    ),
    (
        "rate outside the half",
        "q5_center",
        "((kernel - 1) * rate / 2 - padding)",
        "(kernel - 1) / 2 - padding + rate - 1",
        {"test_q5_rate": 2, "test_q5_even": 2},
    ),
]

# Each replaces the answer cells it names.
CORRECT = [
    {
        "q2_field": """
def field(network):
    left = right = 0
    jump = 1
    for kernel, stride, padding, rate in network:
        left -= padding * jump
        right += (rate * (kernel - 1) - padding) * jump
        jump *= stride
    return [right - left + 1, jump, -left]
""",
        "q3_taps": """
def taps(network, unit, pixels):
    if not network:
        return [unit] if 0 <= unit < pixels else []
    *before, (kernel, stride, padding, rate) = network
    n = pixels
    for k, s, p, r in before:
        n = (n + 2 * p - r * (k - 1) - 1) // s + 1
    found = set()
    for i in range(kernel):
        u = stride * unit - padding + rate * i
        if 0 <= u < n:
            found.update(taps(before, u, pixels))
    return sorted(found)
""",
        "q4_holes": """
def holes(rates):
    reached = {0}
    for rate in rates:
        reached = {p + d for p in reached for d in (-rate, 0, rate)}
    return max(reached) - min(reached) + 1 - len(reached)
""",
    },
    {
        "q3_taps": """
def taps(network, unit, pixels):
    x = torch.zeros(1, 1, pixels, dtype=torch.float64, requires_grad=True)
    y = x
    for kernel, stride, padding, rate in network:
        y = torch.nn.functional.conv1d(y, torch.ones(1, 1, kernel, dtype=torch.float64), None, stride, padding, rate)
    (gradient,) = torch.autograd.grad(y[0, 0, unit], x)
    return torch.nonzero(gradient[0, 0])[:, 0].tolist()
""",
        "q5_center": """
def center_of_unit_0(network):
    size, step, before = field(network)
    return size / 2 - before
""",
    },
    {
        "q1_by_hand": "a, _, c, _ = network\nsize_and_stride = (a[0] + 1 + 4 * c[3] + 2, 2 * 2)",
        "q2_field": """
def field(network):
    size = 1
    for kernel, stride, padding, rate in reversed(network):
        size = (size - 1) * stride + rate * (kernel - 1) + 1
    step, before = 1, 0
    for kernel, stride, padding, rate in network:
        before, step = before + step * padding, step * stride
    return size, step, before
""",
        "q4_holes": """
def holes(rates):
    line = torch.ones(1)
    for rate in rates:
        kernel = torch.zeros(2 * rate + 1)
        kernel[[0, rate, 2 * rate]] = 1
        line = torch.nn.functional.conv1d(line[None], kernel[None, None], padding=2 * rate)[0]
    return int((line == 0).sum())
""",
    },
]

YEARLY = {"test_q1": 2}  # points that last year's typed answers lose
