"""What the tests of a6_v3plus must tell apart: typical wrong answers, and right ones written in other ways."""

# name, answer cell, old text, new text, points lost by test. Q4 uses Q2 and Q3, and trains well with many wrong ones.
MUTANTS = [
    (
        "depthwise as a full convolution",
        "q1_by_hand",
        "9 * inputs + inputs * outputs",
        "9 * inputs * inputs + inputs * outputs",
        {"test_q1": 2},
    ),
    ("pointwise forgotten", "q1_by_hand", "9 * inputs + inputs * outputs", "9 * inputs", {"test_q1": 2}),
    ("rate ignored", "q2_separable", "padding=rate, dilation=rate", "padding=1", {"test_q2": 3}),
    ("stride ignored", "q2_separable", "stride=stride, ", "", {"test_q2": 3}),
    (
        "a ReLU in between",
        "q2_separable",
        "F.conv2d(x, pointwise)",
        "F.conv2d(x.relu(), pointwise)",
        {"test_q2": 3},
    ),
    (
        "low first",
        "q3_decoder",
        "[high, low]",
        "[low, high]",
        {"test_q3": 5},
    ),
    (
        "corners not aligned",
        "q3_decoder",
        'high = F.interpolate(high, low.shape[2:], mode="bilinear", align_corners=True)',
        'high = F.interpolate(high, low.shape[2:], mode="bilinear", align_corners=False)',
        {"test_q3": 5},
    ),
    (
        "a ReLU on the scores",
        "q3_decoder",
        "self.score(self.refine2(self.refine1(x).relu()).relu())",
        "self.score(self.refine2(self.refine1(x).relu()).relu()).relu()",
        {"test_q3": 5, "test_q4_train": 5},
    ),
    (
        "no ReLU on the fine features",
        "q3_decoder",
        "self.reduce(low).relu()",
        "self.reduce(low)",
        {"test_q3": 5},
    ),
    (
        "one refinement left out",
        "q3_decoder",
        "self.refine2(self.refine1(x).relu()).relu()",
        "self.refine1(x).relu()",
        {"test_q3": 5},
    ),
    (
        "four times the size of low",
        "q3_decoder",
        "F.interpolate(scores, size,",
        "F.interpolate(scores, [4 * n for n in low.shape[2:]],",
        {"test_q3": 5, "test_q4_train": 5, "test_q4_label": 2},
    ),
    ("never trained", "q4_train", "range(40)", "range(0)", {"test_q4_train": 5}),
    (
        "a step against the gradient",
        "q4_train",
        "optimizer.zero_grad()\n        loss.backward()",
        "optimizer.zero_grad()\n        (-loss).backward()",
        {"test_q4_train": 5},
    ),
    ("labels of other pictures", "q4_train", "labels[batch]", "labels[batch.flip(0)]", {"test_q4_train": 5}),
    ("void is not ignored", "q4_train", ", ignore_index=VOID", "", {"test_q4_train": 5, "test_q4_label": 2}),
    ("batch statistics while labelling", "q4_train", "net.eval()", "net.train()", {"test_q4_label": 2}),
    (
        "looks the scenes up instead of labelling them",
        "q4_train",
        "    net.eval()\n    with torch.no_grad():\n        return net(images).argmax(1)",
        "    for seed in (1, 2, YEAR):\n"
        "        known, labels = pictures(32, seed)\n"
        "        if known.shape == images.shape and (known == images).all():\n"
        "            return labels.long().clamp(max=1)\n"
        "    return torch.zeros(images.shape[0], *images.shape[2:], dtype=torch.int64)",
        {"test_q4_train": 5},
    ),
    ("labels as floats", "q4_train", ".argmax(1)", ".argmax(1).float()", {"test_q4_label": 2}),
]

# Each replaces the answer cells it names.
CORRECT = [
    {
        "q1_by_hand": "pairs = inputs * outputs\nweights_by_hand = (3 * 3 * pairs, 3 * 3 * inputs + pairs)",
        "q2_separable": """
def separable(x, depthwise, pointwise, rate=1, stride=1):
    x = F.pad(x, [rate] * 4)
    parts = [F.conv2d(x[:, c : c + 1], depthwise[c : c + 1], None, stride, 0, rate) for c in range(x.shape[1])]
    return torch.einsum("oc,nchw->nohw", pointwise[:, :, 0, 0], torch.cat(parts, 1))
""",
    },
    {
        "q2_separable": """
def separable(x, depthwise, pointwise, rate=1, stride=1):
    return F.conv2d(x, depthwise.transpose(0, 1) * pointwise, stride=stride, padding=rate, dilation=rate)
""",
        "q3_decoder": """
class Decoder(nn.Module):
    def __init__(self, high_channels, low_channels, classes, reduced=8, width=16):
        super().__init__()
        self.reduce = nn.Conv2d(low_channels, reduced, 1)
        self.refine1 = nn.Conv2d(high_channels + reduced, width, 3, padding=1)
        self.refine2 = nn.Conv2d(width, width, 3, padding=1)
        self.score = nn.Conv2d(width, classes, 1)

    def forward(self, high, low, size):
        enlarge = nn.UpsamplingBilinear2d(tuple(low.shape[-2:]))
        x = torch.hstack([enlarge(high), F.relu(self.reduce(low))])
        for layer in (self.refine1, self.refine2):
            x = F.relu(layer(x))
        return nn.UpsamplingBilinear2d(tuple(size))(self.score(x))
""",
    },
    {
        "q4_train": """
class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(3, 24, 5, 2, 2), nn.BatchNorm2d(24), nn.ReLU())
        self.high = nn.Sequential(
            nn.Conv2d(24, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 24, 3, 1, 2, 2), nn.BatchNorm2d(24), nn.ReLU()
        )
        self.decoder = Decoder(24, 24, 2)

    def forward(self, images):
        low = self.low((images.float() - 128) / 64)
        return self.decoder(self.high(low), low, images.shape[-2:])

def train(images, labels):
    torch.manual_seed(1)
    net = Small()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    for epoch in range(20):
        for part in torch.randperm(len(images)).split(16):
            scores = net(images[part])
            target = labels[part].long()
            known = target != VOID
            pixels = scores.permute(0, 2, 3, 1)[known]
            loss = F.cross_entropy(pixels, target[known])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()

@torch.no_grad()
def label(net, images):
    return torch.cat([net(image[None]).argmax(1) for image in images])
""",
    },
]

YEARLY = {"test_q1": 2}  # points that last year's typed answers lose
