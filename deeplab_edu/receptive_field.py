"""What a unit sees: the exact pixels, the size of the theoretical field, and how much each pixel really matters.

The layers of a segmentation network treat rows and columns alike and apart. Along one axis a layer is a table of
numbers: A[i, j] says how often output position i reads input position j. If M holds how many paths lead from each
position of a layer's output to the chosen unit, then from each position of its input there are

    rows^T  M  columns

and where branches meet their paths add up. Walked from the unit back to the image this gives every pixel that
reaches it, holes included; no weights and no gradient are needed. `receptive_field` walks forward instead, with the
window of a unit (Araujo, Norris & Sim, *Computing Receptive Fields of Convolutional Neural Networks*, Distill 2019):
a layer of k taps, rate d, stride s, padding p, behind one whose units see r pixels with effective stride S and
effective padding P, sees r + (k - 1) d S pixels with stride S s and padding P + p S.

The network is read as a `torch.fx` graph on the meta device, where tensors have shapes and no values.
"""

import copy
import difflib
import operator
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn


@dataclass(frozen=True)
class Window:
    """Position i reads i * stride - padding + dilation * t for t = 0..size-1. Most layers are one of these.

    Padding cuts off if negative. `mode` says what lies in it: nothing, or the map's own values (as in `F.pad`).
    """

    size: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    mode: str = "constant"

    def table(self, n_in: int, n_out: int) -> Tensor:
        """(n_out, n_in) float64: how often each output position reads each input position."""
        reach = (n_out - 1) * self.stride + (self.size - 1) * self.dilation + 1
        border = (self.padding, max(0, reach - self.padding - n_in))
        nothing = {"value": -1} if self.mode == "constant" else {}
        inputs = F.pad(torch.arange(float(n_in))[None, None], border, self.mode, **nothing)[0, 0].long()
        first, taps = torch.arange(n_out)[:, None] * self.stride, self.dilation * torch.arange(self.size)
        table = torch.zeros(n_out, 1 + n_in, dtype=torch.float64)  # column 0 takes reads of nothing
        return table.scatter_add_(1, 1 + inputs[first + taps], table.new_ones(n_out, self.size))[:, 1:]


def resized(n_in: int, n_out: int, scale: float | None = None, **how: Any) -> Tensor:
    """Table of `F.interpolate`, asked what it makes of single ones. A weight below 1e-9 is rounding, not a tap.

    The ones lie along columns: of maps that are one column wide, torch 2.14 antialiases the wrong rows.
    """
    ones = torch.eye(n_in, dtype=torch.float64)[:, None, None]
    extent: Any = {"size": (1, n_out)} if scale is None else {"scale_factor": (1.0, scale)}
    return (F.interpolate(ones, **extent, **how)[:, 0, 0].T.abs() > 1e-9).double()


# Arguments by position. A module holds them as attributes of the same names.
ARGUMENTS = {
    "conv2d": "input weight bias stride padding dilation groups",
    "convtranspose2d": "input weight bias stride padding output_padding groups dilation",
    "maxpool2d": "input kernel_size stride padding dilation ceil_mode return_indices",
    "avgpool2d": "input kernel_size stride padding ceil_mode count_include_pad divisor_override",
    "interpolate": "input size scale_factor mode align_corners recompute_scale_factor antialias",
    "pad": "input pad mode value",
    "getitem": "input index",
    "mean": "input dim keepdim",
    "sum": "input dim keepdim",
    "amax": "input dim keepdim",
    "softmax": "input dim",
    "batchnorm": "input running_mean running_var weight bias training",
    "cat": "tensors dim",
}
ELEMENTWISE = frozenset(
    """abs add clamp clone contiguous div double dropout dropout1d dropout2d elu exp featuredropout float gelu
    hardsigmoid hardswish hardtanh iadd identity imul isub itruediv leakyrelu log maximum minimum mish mul neg pow
    prelu relu relu6 sigmoid silu softplus sqrt square stochasticdepth sub tanh to truediv""".split()  # noqa: SIM905
)
SEVERAL = ELEMENTWISE | {"cat", "concat", "concatenate"}  # may read more than one map
PADS = {"zeropad2d": "constant", "constantpad2d": "constant", "circularpad2d": "circular"}
PADS |= {"reflectionpad2d": "reflect", "replicationpad2d": "replicate"}


def layer_axis(name: str, s: dict[str, Any], axis: int, n_in: int, n_out: int) -> Window | Tensor | None:
    """What layer `name` with settings `s` reads along `axis` (0 rows, 1 columns): a window or a table; None: no rule.

    A module and the function it calls have one name here: `nn.MaxPool2d` and `F.max_pool2d` are "maxpool2d".
    """

    def get(key: str, default: Any = None) -> Any:
        value = s.get(key, default)
        return value[axis % len(value)] if isinstance(value, tuple | list) else value

    if name in ELEMENTWISE:  # a single value is spread over the map
        return Window() if n_in == n_out else resized(n_in, n_out)
    whole = torch.ones(n_out, n_in, dtype=torch.float64)
    match name:
        case "conv2d" | "convtranspose2d":
            size, padding, rate = get("kernel_size"), get("padding", 0), get("dilation", 1)
            size = s["weight"].shape[2 + axis] if size is None else size
            if isinstance(s.get("padding"), str):  # of an odd number of zeros, "same" puts one more behind
                padding = rate * (size - 1) // 2 if s["padding"] == "same" else 0
            mode = s.get("padding_mode", "zeros").replace("zeros", "constant")
            window = Window(size, get("stride", 1), padding, rate, mode)
            # the transposed one writes what the other reads
            return window if name == "conv2d" else window.table(n_out, n_in).T
        case "maxpool2d" | "avgpool2d":
            stride = get("stride") or get("kernel_size")
            return Window(get("kernel_size"), stride, get("padding", 0), get("dilation", 1))
        case "adaptiveavgpool2d" | "adaptivemaxpool2d":
            if n_out > 1 and n_in % n_out == 0:
                return Window(n_in // n_out, n_in // n_out)
            return F.adaptive_max_pool1d(torch.eye(n_in, dtype=torch.float64)[:, None], n_out)[:, 0].T
        case "interpolate" | "upsample" | "upsamplingbilinear2d" | "upsamplingnearest2d":
            scale = None if s.get("recompute_scale_factor") else get("scale_factor")
            how = {key: s[key] for key in ("mode", "align_corners", "antialias") if key in s}
            return Window() if n_in == n_out and scale in (None, 1) else resized(n_in, n_out, scale, **how)
        case "pad":  # two numbers an axis, the last axis first
            return Window(padding=[*s["pad"], 0, 0][2 - 2 * axis], mode=s.get("mode", "constant"))
        case _ if name in PADS:
            return Window(padding=s["padding"][2 - 2 * axis], mode=PADS[name])
        case "getitem":
            return cropped(s["index"], axis, n_in)
        case "mean" | "sum" | "amax":
            return whole if over(s.get("dim"), axis) else Window()
        case "softmax":
            return None if over(s.get("dim"), 0) or over(s.get("dim"), 1) else Window()
        case "cat" | "concat" | "concatenate":
            return None if over(s.get("dim", 0), 0) or over(s.get("dim", 0), 1) else Window()
        case "batchnorm2d" | "batchnorm" | "instancenorm2d":  # with stored statistics each value by itself
            return whole if s.get("training") or s.get("track_running_stats") is False else Window()
    return whole if name == "groupnorm" else None


def cropped(index: Any, axis: int, n_in: int) -> Window | None:
    index = index if isinstance(index, tuple) else (index,)
    if Ellipsis in index:
        here = index.index(Ellipsis)
        index = index[:here] + (slice(None),) * (5 - len(index)) + index[here + 1 :]
    if len(index) > 4 or not all(isinstance(part, slice) for part in index):
        return None
    start, _, step = (*index, *[slice(None)] * 4)[2 + axis].indices(n_in)
    return Window(stride=step, padding=-start)


def over(dim: int | tuple[int, ...] | None, axis: int) -> bool:
    dims = (dim,) if isinstance(dim, int) else dim
    return not dims or 2 + axis in {d % 4 for d in dims}


class ReceptiveField(NamedTuple):
    """A unit's window along (rows, columns): unit i sees pixel i * stride - padding and the size - 1 that follow.

    None along an axis where every unit sees the whole image.
    """

    size: tuple[int | None, int | None]
    stride: tuple[int | None, int | None]
    padding: tuple[int | None, int | None]


class Field(NamedTuple):
    """The same along one axis."""

    size: int = 1
    stride: int = 1
    padding: int = 0

    @property
    def center(self) -> float:
        return (self.size - 1) / 2 - self.padding

    def behind(self, layer: Window) -> "Field":
        size = self.size + (layer.size - 1) * layer.dilation * self.stride
        return Field(size, self.stride * layer.stride, self.padding + layer.padding * self.stride)


class Route(NamedTuple):
    """A map that a node reads: along each axis a window, or None, and a table, or None if nothing changes."""

    source: fx.Node
    windows: list[Window | None]
    tables: list[Tensor | None]


# While torch.fx traces, its own code stands in for the call of every nn.Module of the process.
ONE_TRACE_AT_A_TIME = threading.Lock()


class Tracer(fx.Tracer):
    """Remembers what each module returned, so that a layer can be asked for by its name.

    An explorer traces in a thread of its own: a model that trains in another one meanwhile is called as ever.
    """

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()
        self.returned: dict[nn.Module, Any] = {}

    def trace(self, *call: Any, **options: Any) -> fx.Graph:
        with ONE_TRACE_AT_A_TIME:
            return super().trace(*call, **options)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        self.returned[m] = super().call_module(m, forward, args, kwargs)
        return self.returned[m]


class Shapes(fx.Interpreter):
    """Keeps the value of every node; on the meta device a value is a shape."""

    def run_node(self, n: fx.Node) -> Any:
        n.meta["value"] = super().run_node(n)
        return n.meta["value"]

    def fetch_attr(self, target: str) -> Any:
        value = super().fetch_attr(target)
        return to_meta(value) if isinstance(value, Tensor) else value


class SpatialGraph:
    """A model in evaluation mode at one image size (rows, columns): traced once, asked often. The model is not touched.

    Raises ValueError if `torch.fx` cannot trace the model, or if it does not take images of that size with as many
    channels as its first convolution has.
    """

    def __init__(self, model: nn.Module, input_size: tuple[int, int]) -> None:
        rows, columns = pair_of(input_size, "input_size is (rows, columns) of the image", low=1)
        on_meta = {id(t): to_meta(t) for t in [*model.parameters(), *model.buffers()]}
        self.model = copy.deepcopy(model, on_meta).eval()  # takes those for copies: no weight is copied
        tracer = Tracer()
        try:
            graph = tracer.trace(self.model)
        except Exception as error:
            raise ValueError(
                f"torch.fx cannot trace this model ({error}); keep what depends on values out of `forward`, or use "
                "effective_field, which needs no trace"
            ) from error
        channels = next((m.in_channels for m in self.model.modules() if isinstance(m, nn.Conv2d)), 3)
        dtype = next((p.dtype for p in self.model.parameters()), torch.float32)
        try:
            with torch.no_grad(), torch.device("meta"):
                images = torch.empty(1, channels, rows, columns, dtype=dtype)
                Shapes(fx.GraphModule(self.model, graph)).run(images)
        except Exception as error:
            raise ValueError(
                f"the model takes no image of {rows} x {columns} with {channels} channels: {error}"
            ) from error
        self.modules = dict(self.model.named_modules(remove_duplicate=False))
        self.returned = tracer.returned
        self.nodes = list(graph.nodes)
        self.image = self.nodes[0]
        self.seeing = {self.image}  # the nodes that hold something of the image
        for node in self.nodes:
            if holds_tensor(node.meta["value"]) and self.seeing.intersection(node.all_input_nodes):
                self.seeing.add(node)
        self._routes: dict[fx.Node, list[Route]] = {}

    def tap_map(self, unit: tuple[int, int], layer: str | None = None, counts: bool = False) -> Tensor:
        """See the function `tap_map`."""
        target = self._node(layer)
        paths = {target: one_at(unit, shape_of(target) or (0, 0))}
        for node in reversed(self._upstream(target)[1:]):
            reached = paths.pop(node)
            for source, _, tables in self._read_by(node):
                more = pull(reached, *tables)
                more = paths[source] + more if source in paths else more
                paths[source] = more if counts else (more > 0).double()
        return paths[self.image] if counts else paths[self.image] > 0

    def map_size(self, layer: str | None = None) -> tuple[int, int]:
        """(rows, columns) of the layer's map."""
        return tuple(self._node(layer).meta["value"].shape[2:])

    def receptive_field(self, layer: str | None = None) -> ReceptiveField:
        """See the function `receptive_field`."""
        target = self._node(layer)
        fields: dict[fx.Node, list[Field | None]] = {self.image: [Field(), Field()]}
        for node in self._upstream(target)[1:]:
            fields[node] = [self._join(node, axis, fields) for axis in (0, 1)]
        rows, columns = (field or (None, None, None) for field in fields[target])
        return ReceptiveField(*zip(rows, columns))

    def _join(self, node: fx.Node, axis: int, fields: dict[fx.Node, list[Field | None]]) -> Field | None:
        """What `node` sees along `axis`: all that its branches see, which must have one stride and one centre."""
        branches = []
        for source, windows, tables in self._read_by(node):
            field, window, table = fields[source][axis], windows[axis], tables[axis]
            if field is None or (window is None and table is not None and table.shape[1] > 1 and table.all()):
                return None
            if window is None:
                raise ValueError(
                    f"{self._name(node)} resizes the map, and behind it units differ in what they see; ask for a "
                    "layer before it, or for the tap_map of a unit"
                )
            branches.append((source, field.behind(window)))
        for one, other in pairwise(branches):
            if (one[1].stride, one[1].center) != (other[1].stride, other[1].center):
                raise ValueError(self._misaligned(node, axis, one, other))
        return max((field for _, field in branches), key=lambda field: field.size)

    def _misaligned(self, node: fx.Node, axis: int, *branches: tuple[fx.Node, Field]) -> str:
        paths = [self._upstream(source) for source, _ in branches]
        own = [[n for n in path if n not in other] for path, other in zip(paths, reversed(paths))]
        words = [
            f"{' -> '.join(map(self._name, path)) or 'the shortcut'} (stride {field.stride}, first unit centred on "
            f"pixel {field.center:g})"
            for path, (_, field) in zip(own, branches)
        ]
        return (
            f"the paths that meet in {self._name(node)} look at different {('rows', 'columns')[axis]}: "
            f"{words[0]} and {words[1]}; give them the same stride and padding"
        )

    def _node(self, layer: str | None) -> fx.Node:
        """The node that holds the output of `layer`: of its last call, and of several maps the deepest."""
        if layer is not None and self.modules.get(layer) not in self.returned:
            used = [name for name, module in self.modules.items() if module in self.returned]
            near = difflib.get_close_matches(layer, used) or used[-3:]
            raise ValueError(f"the model runs no layer {layer!r}; among those it runs are {', '.join(near)}")
        result = self.nodes[-1].args[0] if layer is None else self.returned[self.modules[layer]]
        node: Any = deepest(result)
        node = node.node if isinstance(node, fx.Proxy) else node
        if node not in self.seeing or shape_of(node) is None:
            what = "the model's output" if layer is None else f"the output of {layer!r}"
            raise ValueError(
                f"{what} is no map (N, C, rows, columns) of the image; name a layer that gives one"
            )
        return node

    def _name(self, node: fx.Node) -> str:
        """The path of the module that `node` is, or the function it calls and the module it is called in."""
        if node.op == "call_module":
            return repr(node.target)
        inside = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
        return f"{node.name!r} in {inside[-1]!r}" if inside else repr(node.name)

    def _upstream(self, target: fx.Node) -> list[fx.Node]:
        """The nodes on all paths from the image to `target`, in the order in which they run."""
        found, ahead = {target}, [target]
        while ahead:
            new = {route.source for route in self._read_by(ahead.pop())} - found
            found |= new
            ahead += new
        return [node for node in self.nodes if node in found]

    def _read_by(self, node: fx.Node) -> list[Route]:
        """Each map that `node` reads; a map used twice comes twice."""
        if node not in self._routes:
            used: list[fx.Node] = []
            fx.node.map_arg((node.args, node.kwargs), used.append)
            self._routes[node] = self._find_routes(node, [source for source in used if source in self.seeing])
        return self._routes[node]

    def _find_routes(self, node: fx.Node, sources: list[fx.Node]) -> list[Route]:
        name, settings = operation(node, self.modules)
        routes, after = [], shape_of(node)
        for source in sources:
            reads: list[Window | Tensor | None] = [None, None]
            before = shape_of(source)
            if before and after and (len(sources) == 1 or name in SEVERAL):
                reads = [layer_axis(name, settings, axis, before[axis], after[axis]) for axis in (0, 1)]
            if before is None or after is None or any(read is None for read in reads):
                raise NotImplementedError(
                    f"no rule says which pixels {self._name(node)} reads ({name}); ask for a layer before it by "
                    "layer=..., or use effective_field, which needs no rule"
                )
            windows = [read if isinstance(read, Window) else None for read in reads]
            tables = [table_of(read, n_in, n_out) for read, n_in, n_out in zip(reads, before, after)]
            routes.append(Route(source, windows, tables))
        return routes


def operation(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[str, dict[str, Any]]:
    """Name of the layer for `layer_axis`, and its settings: a module's attributes or a function's arguments."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        return type(module).__name__.lower(), vars(module)
    called = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    name = called.replace("_", "").lower()
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["value"])
    return name, dict(zip(ARGUMENTS.get(name, "").split(), args)) | kwargs


def table_of(read: Window | Tensor | None, n_in: int, n_out: int) -> Tensor | None:
    if isinstance(read, Window):
        return None if read == Window() and n_in == n_out else read.table(n_in, n_out)
    return read


def pull(reached: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """rows^T reached columns; only that part of the tables is multiplied that meets a path."""
    if rows is not None:
        part = span(reached.sum(1))
        reached = rows[part].T @ reached[part]
    if columns is not None:
        part = span(reached.sum(0))
        reached = reached[:, part] @ columns[part]
    return reached


def span(weights: Tensor) -> slice:
    places = weights.nonzero()[:, 0].tolist() or [0]
    return slice(places[0], places[-1] + 1)


def shape_of(node: fx.Node) -> tuple[int, int] | None:
    """Rows and columns of a map (N, C, rows, columns); None for anything else."""
    value = node.meta["value"]
    return tuple(value.shape[2:]) if isinstance(value, Tensor) and value.ndim == 4 else None  # type: ignore[return-value]


def holds_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, tuple | list) and any(map(holds_tensor, value)))


def deepest(result: Any) -> Any:
    """Of a dictionary its "out", as in torchvision; of a list of feature maps the last."""
    result = result.get("out") if isinstance(result, dict) else result
    return result[-1] if isinstance(result, tuple | list) and result else result


def to_meta(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def pair_of(value: Any, meaning: str, low: int) -> tuple[int, int]:
    try:
        first, second = map(operator.index, value)
    except (TypeError, ValueError):
        first = second = low - 1
    if min(first, second) < low:
        raise ValueError(f"{meaning}, two whole numbers from {low} up, not {value!r}")
    return first, second


def one_at(unit: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """Zeros (rows, columns), and a one at `unit`."""
    row, column = pair_of(unit, "unit is (row, column) in the layer's map", low=0)
    if row >= shape[0] or column >= shape[1]:
        raise ValueError(f"unit {unit} lies outside the layer's map, which is {shape[0]} x {shape[1]}")
    one = torch.zeros(shape, dtype=torch.float64)
    one[row, column] = 1
    return one


def receptive_field(
    model: nn.Module, input_size: tuple[int, int], layer: str | None = None
) -> ReceptiveField:
    """Size, stride and padding, in pixels along (rows, columns), of what a unit of `layer` sees.

    `input_size` is (rows, columns) of the image; `layer` a module's path, e.g. "backbone.layer4" (default: the output).
    The size counts what lies outside the image; None where every unit sees the whole image. Raises ValueError behind a
    layer that resizes and where paths of another stride or centre meet, NotImplementedError for a layer without rule.
    """
    return SpatialGraph(model, input_size).receptive_field(layer)


def tap_map(
    model: nn.Module,
    input_size: tuple[int, int],
    unit: tuple[int, int],
    layer: str | None = None,
    counts: bool = False,
) -> Tensor:
    """(H, W) bool: exactly the pixels that can reach `unit` (row, column) of `layer`, for some weights.

    With `counts`, float64: on how many paths, channels not counted. That is the gradient where every weight is one and
    pooling and resizing only add up. Normalisation by stored statistics passes through; by those of the image, as in
    GroupNorm, it reads all. To ask often, keep `SpatialGraph(model, input_size)` and call its `tap_map`. Raises
    ValueError for a unit outside the map, NotImplementedError naming a layer without rule.
    """
    return SpatialGraph(model, input_size).tap_map(unit, layer, counts)


def valid_weights(map_size: tuple[int, int], rate: int, kernel_size: int = 3) -> Tensor:
    """(rows, columns) int64: at each position of a map, how many weights of an atrous convolution lie inside it.

    The others meet zeros only. Over kernel_size ** 2 it is an ASPP branch's share of valid weights at a pixel; its
    histogram is figure 4 of Chen et al., *Rethinking Atrous Convolution* (DeepLab v3, §3.3), for any size and rate.
    """
    size = pair_of(map_size, "map_size is (rows, columns) of the map", low=1)
    if not isinstance(rate, int) or rate < 1 or not isinstance(kernel_size, int) or kernel_size % 2 == 0:
        raise ValueError(
            f"rate is a whole number from 1 up, kernel_size an odd one, not {rate!r}, {kernel_size!r}"
        )
    window = Window(kernel_size, padding=rate * (kernel_size // 2), dilation=rate)
    rows, columns = (window.table(n, n).sum(1).long() for n in size)
    return rows[:, None] * columns


def effective_field(
    model: nn.Module,
    images: Tensor,
    unit: tuple[int, int],
    layer: str | None = None,
    channel: int | None = None,
) -> Tensor:
    """(H, W): how strongly each pixel moves `unit`: |gradient|, summed over colours, averaged over the images.

    Luo et al., *Understanding the Effective Receptive Field*, 2016, §2. `images` (N, C, H, W) float, as the model takes
    them; `channel` is one of the layer's, e.g. a class (default: their sum). The model runs in evaluation mode.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.ndim != 4:
        raise TypeError("images are a float tensor (N, C, H, W), as the model takes them")
    watched = dict(model.named_modules()).get("" if layer is None else layer)
    if watched is None:
        raise ValueError(f"the model has no layer {layer!r}; model.named_modules() lists them")
    outputs: list[Tensor] = []
    handle = watched.register_forward_hook(lambda *call: outputs.append(deepest(call[2]).clone()))
    modes = [(module, module.training) for module in model.modules()]
    images = images.detach().requires_grad_()
    try:
        with torch.enable_grad():
            model.eval()(images)
    finally:
        handle.remove()
        for module, mode in modes:
            module.training = mode
    one = one_at(unit, tuple(outputs[-1].shape[2:])).to(images)  # type: ignore[arg-type]
    answer = outputs[-1].sum(1) if channel is None else outputs[-1][:, channel]
    (gradient,) = torch.autograd.grad((answer * one).sum(), images)
    return gradient.abs().sum(1).mean(0)


class GaussianFit(NamedTuple):
    """Centre and standard deviation of a Gaussian along (rows, columns), in pixels."""

    center: tuple[float, float]
    sigma: tuple[float, float]


def gaussian_fit(field: Tensor) -> GaussianFit:
    """The Gaussian with mean and variance of `field` (H, W): path counts or an effective field.

    Far from borders, path counts through one chain of layers have sigma^2 = sum of (S d)^2 (k^2 - 1) / 12 over its
    layers, S being the effective stride in front of a layer (Luo et al., 2016, §2). Raises ValueError for a field
    with negative weights, or with none.
    """
    if field.ndim != 2 or bool((field < 0).any()) or not field.sum() > 0:
        raise ValueError("a Gaussian is fitted to a map (H, W) of weights that are not negative nor all zero")
    moments = []
    for axis in (0, 1):
        share = field.double().sum(1 - axis) / field.double().sum()
        position = torch.arange(len(share)).to(share)
        mean = (share * position).sum()
        moments.append((mean.item(), (share * (position - mean) ** 2).sum().sqrt().item()))
    return GaussianFit(*zip(*moments))
