"""What the tests of a5_mean_field must tell apart: typical wrong answers, and right ones written in other ways."""

# name, answer cell, old text, new text, points lost by test
MUTANTS = [
    ("not normalised", "q1_by_hand", "(0.8 + p_2[0]) / 2", "0.8 + p_2[0]", {"test_q1": 2}),
    (
        "forgets its own opinion",
        "q1_by_hand",
        "p_2[0] * math.exp(mean) / (p_2[1] * math.exp(1 - mean))",
        "math.exp(mean) / math.exp(1 - mean)",
        {"test_q1": 2},
    ),
    ("x and y exchanged", "q2_kernel", "[x, y]", "[y, x]", {"test_q2_features": 1}),
    (
        "one width for all",
        "q2_kernel",
        "image.double() / theta_beta",
        "image.double() / theta_alpha",
        {"test_q2_features": 1},
    ),
    (
        "column by column",
        "q2_kernel",
        ".reshape(-1, 5)",
        ".transpose(0, 1).reshape(-1, 5)",
        {"test_q2_features": 1},
    ),
    (
        "uint8 arithmetic",
        "q2_kernel",
        "image.double() / theta_beta",
        "(image // int(theta_beta)).double()",
        {"test_q2_features": 1},
    ),
    ("no half", "q2_kernel", ".sum(2) / 2)", ".sum(2))", {"test_q2_kernel": 2}),
    (
        "distance not squared",
        "q2_kernel",
        "difference.square().sum(2)",
        "difference.square().sum(2).sqrt()",
        {"test_q2_kernel": 2},
    ),
    (
        "without the diagonal",
        "q2_kernel",
        "return torch.exp(-difference.square().sum(2) / 2)",
        "return torch.exp(-difference.square().sum(2) / 2).fill_diagonal_(0)",
        {"test_q2_kernel": 2},
    ),
    (
        "columns divided",
        "q3_normalize",
        "return k / sums[:, None]\n",
        "return k / sums[None, :]\n",
        {"test_q3_after": 2},
    ),
    (
        "unknown names pass",
        "q3_normalize",
        'raise ValueError(f"unknown normalisation {how!r}")',
        "return k",
        {"test_q3_after": 2},
    ),
    ("no root", "q3_normalize", ".sqrt()", "", {"test_q3_symmetric": 2}),
    (
        "root of the kernel too",
        "q3_normalize",
        "k / (sums[:, None] * sums[None, :]).sqrt()",
        "(k / sums[:, None] / sums[None, :]).sqrt()",
        {"test_q3_symmetric": 2},
    ),
    (
        "to the others instead of from them",
        "q4_mean_field",
        "return k @ q",
        "return k.T @ q",
        {"test_q4_message": 2, "test_q4_loop": 4},
    ),
    (
        "pixels do not hear themselves",
        "q4_mean_field",
        "return k @ q",
        "return k @ q - k.diagonal()[:, None] * q",
        {"test_q4_message": 2, "test_q4_loop": 4},
    ),
    (
        "the network is forgotten after a step",
        "q4_mean_field",
        "q = (unary + weight * messages(k, q)).softmax(1)",
        "q = (q.clamp(min=1e-5).log() + weight * messages(k, q)).softmax(1)",
        {"test_q4_loop": 4},
    ),
    ("messages subtracted", "q4_mean_field", "unary + weight", "unary - weight", {"test_q4_loop": 4}),
    ("logarithm of zero", "q4_mean_field", "p.clamp(min=1e-5).log()", "p.log()", {"test_q4_loop": 4}),
    ("softmax over pixels", "q4_mean_field", ".softmax(1)", ".softmax(0)", {"test_q4_loop": 4}),
    (
        "starts from equal chances",
        "q4_mean_field",
        "q = p\n",
        "q = torch.full_like(p, 1 / p.shape[1])\n",
        {"test_q4_loop": 4},
    ),
    (
        "norm of the keys forgotten",
        "q5_attention",
        "-f.square().sum(1, keepdim=True) / 2",
        "torch.zeros_like(f[:, :1])",
        {"test_q5": 4},
    ),
    (
        "norm on the wrong side",
        "q5_attention",
        "return queries, keys",
        "return keys, queries",
        {"test_q5": 4},
    ),
    ("sign of the norm", "q5_attention", "-f.square()", "f.square()", {"test_q5": 4}),
]

# Each replaces the answer cells it names.
CORRECT = [
    {
        "q2_kernel": """
def features(image, theta_alpha, theta_beta):
    height, width = image.shape[:2]
    rows = []
    for y in range(height):
        for x in range(width):
            rows.append([x / theta_alpha, y / theta_alpha] + [c / theta_beta for c in image[y, x].tolist()])
    return torch.tensor(rows, dtype=torch.float64)

def kernel(f):
    norms = (f * f).sum(1)
    return torch.exp(f @ f.T - norms[:, None] / 2 - norms[None, :] / 2)
""",
        "q4_mean_field": """
def messages(k, q):
    return torch.einsum("ij,jl->il", k, q)

def mean_field(p, k, weight, steps):
    if steps == 0:
        return p
    before = mean_field(p, k, weight, steps - 1)
    scores = torch.clamp(p, 1e-5) * torch.exp(weight * messages(k, before))
    return scores / scores.sum(1, keepdim=True)
""",
        "q5_attention": """
def queries_and_keys(f):
    half = torch.linalg.vector_norm(f, dim=1, keepdim=True) ** 2 / 2
    return torch.hstack([f, -torch.ones_like(half)]), torch.hstack([f, half])
""",
    },
    {
        "q1_by_hand": "a = torch.tensor([[0.8, 0.2], list(p_2)])\nbelief_by_hand = round((a.log() + a.mean(0)).softmax(1)[1, 0].item(), 4)",
        "q3_normalize": """
def normalize_kernel(k, how):
    inverse = torch.diag(1 / k.sum(dim=1))
    if how not in ("after", "symmetric"):
        raise ValueError(how)
    return inverse @ k if how == "after" else inverse.sqrt() @ k @ inverse.sqrt()
""",
        "q2_kernel": """
def features(image, theta_alpha, theta_beta):
    h, w, _ = image.shape
    index = torch.arange(h * w)
    x, y = index % w, index.div(w, rounding_mode="floor")
    f = torch.empty(h * w, 5, dtype=torch.float64)
    f[:, 0], f[:, 1], f[:, 2:] = x / theta_alpha, y / theta_alpha, image.reshape(-1, 3) / theta_beta
    return f

def kernel(f):
    return torch.exp(-0.5 * torch.cdist(f, f, compute_mode="donot_use_mm_for_euclid_dist") ** 2)
""",
    },
    {
        "q4_mean_field": """
def messages(k, q):
    heard = torch.zeros(k.shape[0], q.shape[1], dtype=q.dtype)
    for i in range(k.shape[0]):
        heard[i] = (k[i][:, None] * q).sum(0)
    return heard

def mean_field(p, k, weight, steps):
    floor = torch.full_like(p, 1e-5)
    log_p, q = torch.maximum(p, floor).log(), p.clone()
    while steps:
        q = torch.softmax(log_p + weight * messages(k, q), dim=-1)
        steps -= 1
    return q
""",
        "q5_attention": """
def queries_and_keys(f):
    norms = torch.tensor([[float(row @ row)] for row in f], dtype=f.dtype)
    return torch.cat((f, torch.full_like(norms, -0.5)), 1), torch.cat((f, norms), 1)
""",
    },
]

YEARLY = {"test_q1": 2}  # points that last year's typed answers lose
