"""What the tests of a7_bug_hunt must tell apart: each fault left in, half mended, and right repairs of other kinds."""

import ast
from pathlib import Path

import nbformat


def script(**parts: str) -> dict[str, str]:
    """The script with functions, classes or methods (`Net_units`: `Net.units`) written in another way."""
    path = Path(__file__).parents[1] / "source" / "a7_bug_hunt" / "a7_bug_hunt.ipynb"
    cells = nbformat.read(path, as_version=4).cells
    [source] = [c.source for c in cells if c.metadata.get("nbgrader", {}).get("grade_id") == "script"]
    for name, new in parts.items():
        body = ast.parse(source).body
        for part in name.split("_", 1) if name[0].isupper() else [name]:
            [found] = [node for node in body if getattr(node, "name", None) == part]
            body = getattr(found, "body", [])
        lines, indent = source.splitlines(), " " * found.col_offset
        start = min([found.lineno, *(d.lineno for d in found.decorator_list)]) - 1
        lines[start : found.end_lineno] = [indent + line for line in new.strip().splitlines()]
        source = "\n".join(lines)
    return {"script": source}


# name, answer cell, old text, new text, points lost by test
MUTANTS = [
    (
        "mask bilinear",
        "script",
        'size, mode="nearest-exact")[0, 0]',
        'size, mode="bilinear", align_corners=False)[0, 0]',
        {"test_q1": 2},
    ),
    (
        "mask bilinear, rounded",
        "script",
        'size, mode="nearest-exact")[0, 0]',
        'size, mode="bilinear")[0, 0].round()',
        {"test_q1": 2},
    ),
    (
        "picture nearest too",
        "script",
        'size, mode="bilinear", align_corners=False)[0]\n',
        'size, mode="nearest")[0]\n',
        {"test_q1": 2},
    ),
    ("void trained on", "script", "losses[target != VOID].mean()", "losses.mean()", {"test_q2": 2}),
    (
        "void zeroed, but still counted",
        "script",
        "losses[target != VOID].mean()",
        "losses.masked_fill(target == VOID, 0).mean()",
        {"test_q2": 2},
    ),
    (
        "averaged over batches",
        "script",
        "        known = target != VOID",
        "        hits, union = torch.zeros(classes), torch.zeros(classes)\n        known = target != VOID",
        {"test_q3": 2},
    ),
    (
        "void in the union",
        "script",
        "(truly | called).sum()",
        "(truly | (predicted == c)).sum()",
        {"test_q3": 2},
    ),
    (
        "absent classes as 0",
        "script",
        "return (hits[union > 0] / union[union > 0])",
        "return (hits / union.clamp(min=1))",
        {"test_q3": 2},
    ),
    (
        "rates not switched",
        "script",
        "layers += zip(self.pyramid, self.rates, strict=True)",
        "pass",
        {"test_q4": 2},
    ),
    (
        "rates the wrong way",
        "script",
        "layers += zip(self.pyramid, self.rates, strict=True)",
        "layers += [(conv, rate / factor**2) for conv, rate in zip(self.pyramid, self.rates, strict=True)]",
        {"test_q4": 2},
    ),
    (
        "doubled at each call",
        "script",
        "layers += zip(self.pyramid, self.rates, strict=True)",
        "layers += [(conv, conv.dilation[0]) for conv in self.pyramid]",
        {"test_q4": 2},
    ),
    (
        "old units, interpolated",
        "script",
        "        return self.score(torch.cat([F.relu(conv(x)) for conv in self.pyramid], 1))",
        "        stride, self.down.stride = self.down.stride[0], (2, 2)\n"
        "        for conv, rate in zip([self.unit.conv1, self.unit.conv2, *self.pyramid], [1, 1, *self.rates]):\n"
        "            conv.dilation = conv.padding = (rate, rate)\n"
        "        x = self.unit(self.norm(self.down(self.stem(images))))\n"
        "        x = self.score(torch.cat([F.relu(conv(x)) for conv in self.pyramid], 1))\n"
        "        size = [(n - 1) * 2 // stride + 1 for n in x.shape[2:]]\n"
        "        self.down.stride = (stride, stride)\n"
        '        return F.interpolate(x, size, mode="bilinear", align_corners=True)',
        {"test_q4": 2},
    ),
    ("momentum is the decay", "script", "momentum=1 - decay", "momentum=decay", {"test_q5": 2}),
    ("the paper's number", "script", "momentum=1 - decay", "momentum=0.9997", {"test_q5": 2}),
    ("PyTorch's default", "script", "momentum=1 - decay", "momentum=0.1", {"test_q5": 2}),
    (
        "corners not aligned",
        "script",
        'return F.interpolate(logits, size, mode="bilinear", align_corners=True)',
        'return F.interpolate(logits, size, mode="bilinear", align_corners=False)',
        {"test_q6": 2},
    ),
    (
        "nearest, corners aligned",
        "script",
        'return F.interpolate(logits, size, mode="bilinear", align_corners=True)',
        "index = [(torch.arange(n) * (m - 1) / (n - 1)).round().long() for n, m in zip(size, logits.shape[2:])]\n"
        "    return logits[..., index[0], :][..., index[1]]",
        {"test_q6": 2},
    ),
    ("ReLU in place", "script", "y = F.relu(x)\n", "y = F.relu(x, inplace=True)\n", {"test_q7": 2}),
    ("first ReLU left out", "script", "y = F.relu(x)\n", "y = x\n", {"test_q7": 2}),
    (
        "divided twice",
        "script",
        "        loss.backward()",
        "        (loss / len(parts)).backward()",
        {"test_q8": 2},
    ),
    (
        "not divided",
        "script",
        "loss = pixel_loss(net(images), masks) / len(parts)",
        "loss = pixel_loss(net(images), masks)",
        {"test_q8": 2},
    ),
    (
        "only the last part",
        "script",
        "        loss.backward()",
        "        optimizer.zero_grad()\n        loss.backward()",
        {"test_q8": 2},
    ),
    (
        "mended in the loss that is printed",
        "script",
        "        loss.backward()\n",
        "        (loss / len(parts)).backward()\n        loss = loss * len(parts)\n",
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
    script(
        resize_pair="""
def resize_pair(image, mask, size):
    image = F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]
    rows = ((torch.arange(size[0]) + 0.5) * mask.shape[0] / size[0]).long()
    columns = ((torch.arange(size[1]) + 0.5) * mask.shape[1] / size[1]).long()
    return image, mask[rows][:, columns]
""",
        pixel_loss="""
def pixel_loss(logits, target):
    return F.cross_entropy(logits, target.long(), ignore_index=VOID)
""",
        norm="""
def norm(channels, decay=0.9):
    layer = nn.BatchNorm2d(channels)
    layer.momentum = 1.0 - decay
    return layer
""",
        Residual_forward="""
def forward(self, x):
    y = F.relu(x.clone(), inplace=True)
    y = F.relu(self.conv1(y), inplace=True)
    return x + self.conv2(y)
""",
    ),
    script(
        score="""
def score(batches, classes):
    counts = torch.zeros(classes, classes, dtype=torch.long)
    for target, predicted in batches:
        known = target != VOID
        pairs = target[known].long() * classes + predicted[known].long()
        counts += torch.bincount(pairs, minlength=classes**2).view(classes, classes)
    hits = counts.diag().double()
    return (hits / (counts.sum(0) + counts.sum(1) - hits)).nanmean().item()
""",
        to_pixels="""
def to_pixels(logits, size):
    return nn.UpsamplingBilinear2d(size=size)(logits)
""",
        step="""
def step(net, optimizer, parts):
    optimizer.zero_grad()
    losses = [pixel_loss(net(images), masks) for images, masks in parts]
    mean = sum(losses) / len(losses)
    mean.backward()
    optimizer.step()
    return mean.item()
""",
        Net_set_output_stride="""
def set_output_stride(self, stride):
    self.down.stride = stride // 8
    rates = [1, 1, *self.rates]
    for conv, rate in zip([self.unit.conv1, self.unit.conv2, *self.pyramid], rates, strict=True):
        conv.padding = conv.dilation = (rate * 16 // stride,) * 2
""",
    ),
    {
        **script(
            pixel_loss="""
def pixel_loss(logits, target):
    known = target != VOID
    losses = F.cross_entropy(logits, target.where(known, 0).long(), reduction="none")
    return (losses * known).sum() / known.sum()
""",
            step="""
def step(net, optimizer, parts):
    optimizer.zero_grad()
    losses = []
    for images, masks in parts:
        losses.append(pixel_loss(net(images), masks))
        losses[-1].backward()
    for weight in net.parameters():
        weight.grad /= len(parts)
    optimizer.step()
    return sum(loss.item() for loss in losses) / len(parts)
""",
            Net_units='''
def units(self, images):
    """The same, with the pyramid's rates looked up when they are used."""
    x = self.unit(self.norm(self.down(self.stem(images))))
    factor = 2 // self.down.stride[0]
    rates = [factor * rate for rate in self.rates]
    branches = [
        F.conv2d(x, conv.weight, conv.bias, padding=rate, dilation=rate)
        for conv, rate in zip(self.pyramid, rates, strict=True)
    ]
    return self.score(torch.cat(branches, 1).relu())
''',
        ),
        "q9_by_hand": "from math import exp, log\n\nshares = (exp(steps * log(0.9997)), 0.0)",
    },
]

YEARLY = {"test_q9": 2}  # points that last year's typed answers lose
