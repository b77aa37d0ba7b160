"""What the tests of a4_atrous must tell apart: typical wrong answers, and right ones written in other ways."""

# name, answer cell, old text, new text, points lost by test. Q3 builds on Q2.
MUTANTS = [
    (
        "the layer that lost its stride is dilated",
        "q1_by_hand",
        "rates_by_hand.append(rate_so_far)\n    if stride_so_far * one > wanted:\n        rate_so_far *= one\n",
        "if stride_so_far * one > wanted:\n        rate_so_far *= one\n    rates_by_hand.append(rate_so_far)\n    if stride_so_far * one > wanted:\n        pass\n",
        {"test_q1": 2},
    ),
    (
        "only the next layer is dilated",
        "q1_by_hand",
        "rates_by_hand.append(rate_so_far)",
        "rates_by_hand.append(rate_so_far)\n    rate_so_far = 1",
        {"test_q1": 2},
    ),
    (
        "the layer that lost its stride is dilated (Q2)",
        "q2_plan",
        "layers.append((1, rate))\n            rate *= stride",
        "rate *= stride\n            layers.append((1, rate))",
        {"test_q2": 4, "test_q3": 4},
    ),
    ("rates do not multiply", "q2_plan", "rate *= stride", "rate = stride", {"test_q2": 4, "test_q3": 4}),
    ("always doubles", "q2_plan", "rate *= stride", "rate *= 2", {"test_q2": 4}),
    ("stride removed, rate forgotten", "q2_plan", "rate *= stride", "pass", {"test_q2": 4, "test_q3": 4}),
    ("impossible strides pass", "q2_plan", "if total != output_stride:", "if False:", {"test_q2": 4}),
    (
        "removes the first strides instead of the last",
        "q2_plan",
        "for stride in strides:",
        "for stride in [1] * strides.count(1) + [s for s in strides if s > 1]:",
        {"test_q2": 4, "test_q3": 4},
    ),
    ("padding of 1 at every rate", "q3_build", "padding=rate", "padding=1", {"test_q3": 4}),
    ("no padding", "q3_build", "padding=rate, ", "", {"test_q3": 4}),
    (
        "new weights",
        "q3_build",
        "nn.Parameter(weight)",
        "nn.Parameter(torch.randn_like(weight))",
        {"test_q3": 4},
    ),
    ("a ReLU at the end", "q3_build", "layers[:-1]", "layers", {"test_q3": 4}),
    (
        "no ReLU",
        "q3_build",
        "layers += [layer, nn.ReLU()]",
        "layers += [layer, nn.Identity()]",
        {"test_q3": 4},
    ),
    ("with biases", "q3_build", ", bias=False", "", {"test_q3": 4}),
    (
        "computes the nominal map and enlarges it",
        "q3_build",
        "plan(strides, output_stride), strict=True",
        "plan(strides, torch.tensor(strides).prod().item()), strict=True",
        {"test_q3": 4},
    ),
    (
        "no image pooling",
        "q4_pyramid",
        "self.pooled(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])",
        "self.pooled(x)",
        {"test_q4": 4},
    ),
    (
        "image pooling first",
        "q4_pyramid",
        "[self.pointwise(x), *(branch(x) for branch in self.atrous), mean]",
        "[mean, self.pointwise(x), *(branch(x) for branch in self.atrous)]",
        {"test_q4": 4},
    ),
    ("branches without ReLU", "q4_pyramid", "branch.relu() for", "branch for", {"test_q4": 4}),
    ("a ReLU after the projection", "q4_pyramid", "branches], 1))", "branches], 1)).relu()", {"test_q4": 4}),
    (
        "the first rate for all",
        "q4_pyramid",
        "branch(x) for branch in self.atrous",
        "self.atrous[0](x) for branch in self.atrous",
        {"test_q4": 4},
    ),
    ("one axis only", "q5_valid", "along_one_axis**2", "along_one_axis", {"test_q5": 3}),
    ("no floor at one tap", "q5_valid", "max(size - rate, 0)", "(size - rate)", {"test_q5": 3}),
    (
        "all or nothing",
        "q5_valid",
        "return along_one_axis**2",
        "return 1.0 if rate < size // 2 else 1 / 9",
        {"test_q5": 3},
    ),
]

# Each replaces the answer cells it names.
CORRECT = [
    {
        "q2_plan": """
def plan(strides, output_stride):
    done, kept, result = 1, 1, []
    for s in strides:
        keep = kept * s <= output_stride
        result.append([s if keep else 1, done // kept])
        done *= s
        kept *= s if keep else 1
    if kept < output_stride or kept > output_stride:
        raise ValueError("cannot be had")
    return result
""",
        "q3_build": """
class Stack(nn.Module):
    def __init__(self, weights, layers):
        super().__init__()
        self.weights, self.layers = nn.ParameterList(weights), layers

    def forward(self, x):
        for i, (weight, (stride, rate)) in enumerate(zip(self.weights, self.layers)):
            if i:
                x = F.relu(x)
            x = F.conv2d(F.pad(x, [rate] * 4), weight, stride=stride, dilation=rate)
        return x

def build(weights, strides, output_stride):
    return Stack(weights, plan(strides, output_stride))
""",
        "q4_pyramid": """
class Pyramid(nn.Module):
    def __init__(self, channels, out, rates):
        super().__init__()
        self.rates = rates
        self.pointwise = nn.Conv2d(channels, out, 1)
        self.atrous = nn.ModuleList(nn.Conv2d(channels, out, 3, padding=r, dilation=r) for r in rates)
        self.pooled = nn.Conv2d(channels, out, 1)
        self.project = nn.Conv2d(out * (len(rates) + 2), out, 1)

    def forward(self, x):
        found = [F.relu(self.pointwise(x))]
        for layer in self.atrous:
            found.append(F.relu(layer(x)))
        found.append(F.interpolate(F.relu(self.pooled(F.adaptive_avg_pool2d(x, 1))), x.shape[-2:]))
        return self.project(torch.hstack(found))
""",
    },
    {
        "q1_by_hand": "layers, total, rate = [], 1, 1\nfor s in strides:\n    layers += [rate]\n    total, rate = (total, rate * s) if total * s > wanted else (total * s, rate)\nrates_by_hand = tuple(layers)",
        "q3_build": """
def build(weights, strides, output_stride):
    net = nn.Sequential()
    for i, (stride, rate) in enumerate(plan(strides, output_stride)):
        out, inside = weights[i].shape[:2]
        net.add_module(f"conv{i}", nn.Conv2d(inside, out, 3, stride, rate, rate, bias=False))
        if i < len(weights) - 1:
            net.add_module(f"relu{i}", nn.ReLU(inplace=True))
    net.load_state_dict({f"conv{i}.weight": w for i, w in enumerate(weights)})
    return net.eval()
""",
        "q5_valid": """
def valid_share(size, rate):
    total = sum(1 for u in range(size) for d in (-rate, 0, rate) if 0 <= u + d < size)
    return (total / size / 3) ** 2
""",
    },
    {
        "q2_plan": """
def plan(strides, output_stride):
    if not strides:
        if output_stride != 1:
            raise ValueError(output_stride)
        return []
    first, *rest = strides
    if first <= output_stride:
        if output_stride % first:
            raise ValueError(output_stride)
        return [(first, 1)] + plan(rest, output_stride // first)
    rates = [1]
    for s in strides[:-1]:
        rates.append(rates[-1] * s)
    if output_stride != 1:
        raise ValueError(output_stride)
    return [(1, rate) for rate in rates]
""",
        "q5_valid": """
def valid_share(size, rate):
    ones = torch.ones(1, 1, size, size)
    return (F.conv2d(ones, torch.ones(1, 1, 3, 3), padding=rate, dilation=rate) / 9).mean()
""",
    },
]

YEARLY = {"test_q1": 2}  # points that last year's typed answers lose
