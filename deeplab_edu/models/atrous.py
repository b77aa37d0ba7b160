"""Atrous surgery: a network that strides, made dense by one rule on the weights it has."""

from collections.abc import Iterable, Iterator, Sequence

from torch import nn


def set_output_stride(
    units: Iterable[nn.Module], output_stride: int, unit_rates: Sequence[int] | None = None
) -> list[int]:
    """Make a strided network dense: at most `output_stride` pixels between two units of its last map, same weights.

    A layer that would stride further gets stride 1 and keeps its own rate; everything after it reads with holes, as
    many times wider as the stride that went (DeepLab v1, §3.1; v3, §3.1). Units that were there before then have
    the values they had: the dense map, subsampled, is the nominal one.

    `units` are layers or residual blocks in the order in which they compute; convolutions and max pools inside keep
    their map's size but for the stride. Inside a block, layers under `downsample` or `shortcut` are beside the rest.
    `unit_rates` multiply the rates within each unit (multi-grid; v3, §3.2.1). Calling it again starts from the
    strides the layers were built with. Returns the stride of the map after each unit.

    Raises ValueError for an output stride that is no whole number from 1 up, and where a max pool would need holes
    and has a padding: torch allows a padding of half the kernel without its holes at most.
    """
    if not isinstance(output_stride, int) or output_stride < 1:
        raise ValueError(f"output_stride is a whole number from 1 up, not {output_stride!r}")
    units = list(units)
    stride, rate, strides = 1, 1, []
    for unit, unit_rate in zip(units, unit_rates or [1] * len(units), strict=True):
        entering = stride, rate
        for branch in branches(unit):
            stride, rate = entering
            for layer in branch:
                nominal = nominal_stride(layer)
                fits = stride * nominal <= output_stride
                arrange(layer, stride=nominal if fits else 1, rate=rate * unit_rate)
                stride, rate = (stride * nominal, rate) if fits else (stride, rate * nominal)
        strides.append(stride)
    return strides


def branches(unit: nn.Module) -> Iterator[list[nn.Conv2d | nn.MaxPool2d]]:
    """The layers of a unit that a stride concerns: those of its main branch, then those of its shortcut, if any."""
    main: list[nn.Conv2d | nn.MaxPool2d] = []
    shortcut: list[nn.Conv2d | nn.MaxPool2d] = []
    for name, layer in unit.named_modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            (shortcut if name.startswith(("downsample", "shortcut")) else main).append(layer)
    return filter(None, (main, shortcut))


def nominal_stride(layer: nn.Conv2d | nn.MaxPool2d) -> int:
    """The stride a layer was built with, kept on it the first time somebody asks."""
    if not hasattr(layer, "nominal_stride"):
        layer.nominal_stride = pair(layer.stride)[0]  # type: ignore[assignment]
    return int(layer.nominal_stride)  # type: ignore[arg-type]


def arrange(layer: nn.Conv2d | nn.MaxPool2d, stride: int, rate: int) -> None:
    """Set stride and rate, and the padding with which an odd kernel keeps its map's size (an even pool has none)."""
    taps = pair(layer.kernel_size)[0]
    padding = rate * (taps - 1) // 2 if taps % 2 else 0
    if isinstance(layer, nn.Conv2d):
        layer.stride, layer.dilation, layer.padding = (stride,) * 2, (rate,) * 2, (padding,) * 2
    elif padding > taps // 2:
        raise ValueError(
            f"a max pool of {taps} x {taps} with padding cannot read with holes, as it would have to at this output "
            "stride; ask for a larger one"
        )
    else:
        layer.stride, layer.dilation, layer.padding = stride, rate, padding


def pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value, value)
