"""The claims ledger: what the papers claim beside what was measured here, and verdicts by one rule.

Published numbers and their sources are in `results/published.json`; ours are in the other files of `results/`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deeplab_edu.results import FOLDER, Record, load_result, spread

ENOUGH = 3  # seeds; with fewer, no verdict
SHOWS, NOT_HERE, REVERSED = "shows", "does not show at this scale", "the reverse shows"


def read_published(section: str, *, folder: Path | None = None) -> list[Record]:
    """The rows of a section of `results/published.json`, each with its `source`.

    Raises:
        KeyError: there is no such section.
        ValueError: a row names no source.
    """
    content = load_result("published", folder=folder)
    if section not in content:
        raise KeyError(f"published.json has no section {section!r}; it has {', '.join(content)}")
    rows = []
    for row in content[section]:
        source = row.get("source") or f"{content['papers'].get(row.get('paper'), '')}, {row.get('where', '')}"
        if source.strip(", ") == "" or source.startswith(","):
            raise ValueError(f"no source stands beside {row}")
        rows.append(Record(row, source=source))
    return rows


def verdict_on(differences: Sequence[float], within: float | None = None) -> str:
    """What the differences between two arms, one a seed, say about the claim that the first is better.

    It shows if the first arm is better in every seed, the reverse shows if it is worse in every seed, and if the seeds
    disagree nothing does. With `within`, the claim is that there is none: it shows if no difference is larger.
    """
    if len(differences) < ENOUGH:
        return f"not tested: {len(differences)} of {ENOUGH} seeds"
    if within is not None:
        return SHOWS if max(map(abs, differences)) <= within else NOT_HERE
    if all(d > 0 for d in differences):
        return SHOWS
    return REVERSED if all(d < 0 for d in differences) else NOT_HERE


@dataclass(frozen=True)
class Line:
    """A line of the ledger; `differences` are ours, in points, one a seed."""

    notebook: str
    claim: str
    paper: str  # the paper's numbers, two scores or a gain
    source: str
    differences: tuple[float, ...]
    verdict: str
    record: str = ""  # the result that the differences come from

    @property
    def ours(self) -> str:
        return spread([d / 100 for d in self.differences]) if self.differences else ""


def ledger(profile: str = "cpu", *, folder: Path | None = None) -> list[Line]:
    """Every claim of `published.json`, judged by the results of a profile."""
    return [judge(claim, profile, folder) for claim in read_published("claims", folder=folder)]


def judge(claim: Mapping[str, Any], profile: str, folder: Path | None = None) -> Line:
    """The line of one claim, a row of section "claims"."""
    about = (claim["notebook"], claim["claim"], _in_words(claim["numbers"]), claim["source"])
    ours = claim.get("ours")
    if not ours:
        return Line(*about, (), f"not testable here: {claim['reason']}")
    name = f"{ours['result']}.{profile}"
    try:
        pairs = _paired(load_result(name, folder=folder), ours)
    except FileNotFoundError:
        pairs = None
    if pairs is None:
        return Line(*about, (), f"not recorded in profile {profile}", name)
    differences = tuple(100 * (better - worse) for better, worse in pairs)
    return Line(*about, differences, verdict_on(differences, ours.get("within")), name)


def _in_words(numbers: Sequence[float] | None) -> str:
    """Two numbers are scores, one is a gain; None says that the paper has none."""
    if not numbers:
        return "no number"
    return f"{numbers[0]:+g}" if len(numbers) == 1 else f"{numbers[0]:.2f} to {numbers[1]:.2f}"


def _paired(record: Record, ours: Mapping[str, Any]) -> list[tuple[float, float]] | None:
    """One metric of two arms, seed by seed; None if an arm or the metric is not in the record."""
    arms = record["measured"]
    for step in ours.get("path", ()):
        arms = arms.get(step, {})
    with_it, without = (arms.get(ours[side], {}).get(ours["metric"]) for side in ("with", "without"))
    if not with_it or not without:
        return None
    return list(zip(with_it, without, strict=False))  # an interrupted record may hold one arm more often


CAMVID_NETWORKS = {"mobilenet_v2": "MobileNetV2", "resnet50": "ResNet-50", "resnet101": "ResNet-101"}
CAMVID_ARMS = {  # start, scored: how a title ends
    ("scratch", "test"): "",
    ("scratch", "test, scales and flip"): ", scales and flips",
    ("imagenet", "test"): " *",
    ("imagenet", "test, scales and flip"): ", scales and flips *",
}


def camvid_scores(*, folder: Path | None = None) -> dict[str, tuple[Record, dict[str, Any]]]:
    """Our scores on CamVid's test pictures, as far as they are recorded: title -> the record, and its scores.

    FCN-8s of notebook 02, and v3+ by experiments/camvid_protocol.py with each backbone and resolution that is there. A
    star says that ImageNet weights were the start. Scores of several seeds are their mean.
    """
    found = {}
    for path in sorted((folder or FOLDER).glob("camvid_*.json")):
        record = load_result(path.stem, folder=folder)
        if path.stem == "camvid_tiny":
            found["FCN-8s tiny"] = (record, record["measured"])
        if path.stem.split(".")[0] != "camvid_protocol":
            continue
        network = record.get("backbone", "mobilenet_v2")
        title = f"v3+ {CAMVID_NETWORKS.get(network, network)}, {record.get('resolution', 'half')} size"
        for (start, scored), end in CAMVID_ARMS.items():
            if scores := record["measured"].get(start, {}).get(scored):
                found[title + end] = (record, scores)
    return found


def camvid_table(*, folder: Path | None = None) -> list[dict[str, Any]]:
    """Published networks, their repetitions and ours on CamVid's test pictures, the best first.

    Each row has `network`, `ours`, `pretrained`, `millions` (of parameters), `miou` and `accuracy` in points, and
    `source`: where it was published, or how ours was trained. What a file does not hold is None.
    """
    rows = [
        {
            "network": r["model"],
            "ours": False,
            "pretrained": r.get("pretrained", False),
            "source": r["source"],
        }
        | {name: r.get(name) for name in ("millions", "miou", "accuracy")}
        for section in ("camvid_test", "camvid_repetitions")
        for r in read_published(section, folder=folder)
    ]
    for title, (record, scores) in camvid_scores(folder=folder).items():
        rows.append(
            {
                "network": title.removesuffix(" *"),
                "ours": True,
                "pretrained": title.endswith("*"),
                "millions": record["parameters"] / 1e6 if "parameters" in record else None,
                "miou": 100 * scores["miou"],
                "accuracy": 100 * scores["pixel_accuracy"] if "pixel_accuracy" in scores else None,
                "source": _made(record),
            }
        )
    return sorted(rows, key=lambda row: row["miou"], reverse=True)


def _made(record: Record) -> str:
    steps, seeds = record["recipe"]["iterations"], record["seeds"]
    which = f"seed{'s'[: len(seeds) > 1]} {', '.join(map(str, seeds))}"
    return f"{steps} steps, {which}, {record['machine']['device']}, {record['date']}"
