"""Weights from files: a classifier's for a backbone, or a whole model's; what does not fit is said in a sentence."""

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights, get_weight


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file: `.safetensors`, or what `torch.save(model.state_dict(), path)` writes.

    Only tensors are ever unpickled. Raises FileNotFoundError for a missing file and ValueError for one that holds
    something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file of weights at {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as a state dict of tensors, or is damaged") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(
            f"{path} holds no plain state dict; write it by torch.save(model.state_dict(), path)"
        )
    return state


def pretrained_weights(backbone: str, source: bool | str | Path) -> dict[str, Tensor]:
    """State dict of the classifier `backbone`: torchvision's ImageNet weights, or those in the file `source`.

    `source=True` asks torchvision, which downloads them once into torch's cache; nothing else here goes online.
    Raises what `read_weights` and `downloaded` do, and ValueError for a backbone that torchvision has no weights for.
    """
    if backbone == "tiny":
        raise ValueError("the tiny backbone has no ImageNet weights; leave out `pretrained`, or use vgg16")
    if source is not True:
        return read_weights(str(source))
    if backbone.startswith("xception"):
        raise ValueError(f"torchvision has no weights of {backbone}; give `pretrained` the path of a file")
    return downloaded(get_model_weights(backbone).DEFAULT)


def downloaded(weights: WeightsEnum) -> dict[str, Tensor]:
    """The state dict of torchvision's `weights`, from torch's cache or the web, checksum verified.

    Raises ConnectionError, with the address and where to put the file by hand.
    """
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:  # the second: another checksum
        place = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
        raise ConnectionError(
            f"{weights.url} could not be downloaded ({getattr(error, 'reason', error)}): try again later, or get it "
            f"in another way and put it at {place}"
        ) from error


def load_renamed(
    module: nn.Module, state: Mapping[str, Tensor], names: Mapping[str, str], source: object
) -> None:
    """Fill `module` from `state`, where its layers have other names: `names` maps a prefix of ours to one of theirs.

    Tensors are reshaped if only their shape differs (a linear layer into the convolution that computes the same).
    Parameters under no prefix keep their values; entries of `state` that nobody asks for are left unused. Raises
    ValueError naming the first entry that is missing or of another size.
    """
    own = module.state_dict()
    for name, value in own.items():
        prefix = next((ours for ours in names if name.startswith(ours)), None)
        if prefix is None:
            continue
        theirs = names[prefix] + name.removeprefix(prefix)
        given = state.get(theirs)
        if given is None:
            raise ValueError(f"the weights from {source} lack {theirs!r}: is this another network's file?")
        if given.numel() != value.numel():
            shapes = f"{tuple(given.shape)}, not {tuple(value.shape)}"
            raise ValueError(
                f"{theirs!r} in the weights from {source} has shape {shapes}: is it another network?"
            )
        own[name] = given.reshape(value.shape)
    module.load_state_dict(own)


def load_whole(model: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """Fill all of `model` from a state dict with its own names.

    Raises ValueError in one sentence for another number of classes, and for missing, unknown or mis-shaped entries;
    the model is then as it was.
    """
    own = model.state_dict()
    missing, unknown = [n for n in own if n not in state], [n for n in state if n not in own]
    if missing or unknown:
        lacks = f"lack {missing[0]!r} ({len(missing)} entries)" if missing else ""
        more = f"have {unknown[0]!r} that it has not ({len(unknown)} entries)" if unknown else ""
        said = " and ".join(filter(None, (lacks, more)))
        raise ValueError(
            f"the weights from {source} are another network's: compared with this {type(model).__name__} they {said}"
        )
    misfits = [(name, state[name].shape, v.shape) for name, v in own.items() if state[name].shape != v.shape]
    if misfits and (classes := other_classes(misfits)):
        raise ValueError(
            f"the weights from {source} are for {classes[0]} classes and the model has {classes[1]}; "
            f"build it with num_classes={classes[0]}"
        )
    for name, given, shape in misfits[:1]:
        raise ValueError(
            f"{name!r} in the weights from {source} has shape {tuple(given)}, not {tuple(shape)}: "
            "is it a network of another width or backbone?"
        )
    model.load_state_dict(dict(state))


def other_classes(misfits: Sequence[tuple[str, torch.Size, torch.Size]]) -> tuple[int, int] | None:
    """(theirs, ours) if all shapes differ by one and the same number only; channels differ by several, multiples."""
    pairs = {pair for _, given, own in misfits for pair in zip(given, own) if pair[0] != pair[1]}
    alike = all(len(given) == len(own) for _, given, own in misfits)
    return pairs.pop() if alike and len(pairs) == 1 else None


def check_stride_in(model: nn.Module, facts: Mapping[str, Any], source: object) -> None:
    """Where a ResNet strides is no weight: a file whose `facts` say so is compared with the model.

    Raises ValueError if it is another place: all would load, and the network would compute something else.
    """
    own, theirs = (stride_in(model), facts.get("stride_in"))
    if own and theirs and own != theirs:
        raise ValueError(
            f"the weights from {source} are of a ResNet that strides in its {theirs} convolutions, and this one does "
            f'in its {own}; build the model with stride_in="{theirs}"'
        )


def stride_in(model: nn.Module) -> str | None:
    """The convolutions in which the model's ResNet strides, "1x1" or "3x3"; None for another backbone."""
    return getattr(getattr(model, "backbone", None), "stride_in", None)


def read_facts(path: Path) -> dict[str, Any]:
    """What `checkpoints.save_weights` wrote into a file beside the weights; of other files, nothing."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, framework="pt") as file:
        return json.loads((file.metadata() or {}).get("facts", "{}"))


def load_model(model: nn.Module, source: str | Path, names: Mapping[str, str] | None = None) -> None:
    """Fill all of `model` from the file `source`, or from torchvision's network trained on COCO: source "coco".

    `names` maps prefixes of the model's names to those of torchvision's network, for "coco" and for files that have
    these. "coco" is downloaded once, checksum verified. Raises what `read_weights`, `downloaded`, `check_stride_in`
    and `load_whole` do.
    """
    if source == "coco" and names is None:
        raise ValueError('weights="coco" are of torchvision\'s network: build it with compat="torchvision"')
    if source == "coco":
        depth = 50 if len(model.backbone.layers[2]) == 6 else 101  # type: ignore[union-attr, index]
        weights = get_weight(f"DeepLabV3_ResNet{depth}_Weights.COCO_WITH_VOC_LABELS_V1")
        state = downloaded(weights)
    else:
        state = read_weights(source)
        check_stride_in(model, read_facts(Path(source)), source)
    if names and any(name.startswith("classifier.") for name in state):
        state = {
            ours + n.removeprefix(p): v
            for n, v in state.items()
            for ours, p in names.items()
            if n.startswith(p)
        }
    load_whole(model, state, source)
