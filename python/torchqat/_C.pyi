"""Types of the native extension. Operators are not here: see ``torchqat.ops``."""

from os import PathLike

from torch import Tensor, dtype

from torchqat.errors import UserError

FLOAT: int
built_for_torch: str
built_with_cuda: bool

class RecipeError(UserError):
    """Every problem of a recipe, one ``file:line:column: sentence`` a line."""

class FileError(OSError):
    """A file that is not what it should be, or that could not be written."""

class QuantSpec:
    """How one tensor of a layer is quantized: an immutable value.

    Args:
        bits: 2 to 8; the width that is exported. A float has that of its name.
        grid: ``narrow``, ``full``, ``signed``, ``asymmetric`` or ``offset``; ``iq4_nl``; or a float, ``fp4_e2m1``,
            ``fp6_e2m3``, ``fp6_e3m2``, ``fp8_e4m3``, ``fp8_e5m2``.
        granularity: ``tensor``, ``channel``, ``token``, ``group``, ``block`` or, for caches, ``head``.
        group_size: Columns, for ``group``.
        block: Rows and columns, for ``block``.
        scale: ``minmax``, ``absmean`` (weights of -1, 0 and 1), ``mse`` or ``learned``.
        scale_dtype: ``float32``, ``bfloat16`` or ``float16``; the scale is rounded to it before it is used. Or its code:
            ``e8m0_floor``, ``e8m0_even``, ``e8m0_ceil``, ``e4m3``, ``e4m3_four_over_six``, ``int4``, ``int6``,
            ``int6_signed``, ``int8``.
        dynamic: For inputs: a scale per call.
        observer: For inputs that are not dynamic: ``minmax``, ``moving_average``, ``percentile``, ``mse`` or ``entropy``.
        percentile: Of the ``percentile`` observer.
        averaging_constant: Of the ``moving_average`` observer.
        outer_block: Rows and columns whose scales are codes times one outer scale, -1 for a whole axis; ``(0, 0)``: none.
        outer_dtype: What the outer scale is stored in.

    Attributes:
        dtype: ``int4``, ``fp4_e2m1`` and the like.
        type_name: As recipes name it: ``nvfp4`` and its like, else the dtype.
        is_float: Whether its levels are those of a float.
        is_named: Whether its levels have a width of their own, as a float's and those of ``iq4_nl`` have.
        has_offset: Whether its levels count from an offset.
        takes_widths: Whether it may have any of the widths of integers instead.
        finds_scale: Of a weight: whether its scales are found in every forward.
        has_outer_scale: Whether its scales are codes times an outer one.
        scales_by_row: Whether the scales of a row come from that row alone.

    Raises:
        ValueError: A value is not among the allowed ones.
    """

    def __init__(
        self,
        bits: int,
        *,
        grid: str = "narrow",
        granularity: str = "channel",
        group_size: int = 0,
        block: tuple[int, int] = (0, 0),
        scale: str = "minmax",
        scale_dtype: str = "bfloat16",
        dynamic: bool = False,
        observer: str = "minmax",
        percentile: float = 99.99,
        averaging_constant: float = 0.01,
        outer_block: tuple[int, int] = (0, 0),
        outer_dtype: str = "float32",
    ) -> None: ...
    bits: int
    grid: str
    granularity: str
    group_size: int
    scale: str
    scale_dtype: str
    dynamic: bool
    observer: str
    follows: bool
    symmetric: bool
    block: tuple[int, int]
    outer_block: tuple[int, int]
    outer_dtype: str
    has_outer_scale: bool
    scales_by_row: bool
    dtype: str
    type_name: str
    is_float: bool
    is_named: bool
    has_offset: bool
    takes_widths: bool
    finds_scale: bool
    def finder(self, bits: int) -> str: ...
    def quant_range(self, bits: int) -> tuple[float, float]: ...
    def weight_quantizer(self, bits: int, rows: int, cols: int) -> str: ...
    def input_quantizer(self, bits: int, features: int) -> str: ...
    def quantizer(self, bits: int, mode: str) -> str: ...
    def block_count(self, rows: int, cols: int) -> int: ...

def preset(name: str) -> QuantSpec:
    """The spec that a recipe's ``dtype`` names with its groups and scales: ``nvfp4``, ``mxfp4``, ``q4_k`` ...

    Raises:
        ValueError: There is none of that name.
    """

class Bound:
    """A share of a run's steps, in per cent, or a step."""

    value: float
    is_percent: bool
    def __init__(self, value: float, is_percent: bool = True) -> None: ...
    def step_of(self, total_steps: int) -> int: ...

class Recipe:
    """A recipe as read; its sections mirror the file (``recipes/quickstart.yaml`` comments every key)."""

    file: str
    text: str
    kv_cache: KvCacheSpec | None

    def __copy__(self) -> Recipe: ...

class RecipeKey:
    """A key of recipes, as the reader asks for it (``qat/recipe/keys.h``)."""

    path: str
    types: list[str]
    words: list[str]
    fallbacks: list[str]
    least: float | None
    greatest: float | None
    required: bool
    meaning: str

def recipe_keys() -> list[RecipeKey]: ...
def load_recipe(path: str, settings: list[str] = []) -> Recipe: ...
def parse_recipe(text: str, file: str = "recipe", settings: list[str] = []) -> Recipe: ...

class LayerInfo:
    def __init__(
        self, name: str, type: str, in_features: int, out_features: int, by_name_only: bool = False
    ) -> None: ...
    name: str

class LayerPlan:
    def __init__(
        self,
        name: str,
        in_features: int,
        out_features: int,
        weight: QuantSpec | None = None,
        input: QuantSpec | None = None,
        type: str = "Linear",
        shares: list[str] = ...,
    ) -> None: ...
    type: str
    shares: list[str]
    name: str
    in_features: int
    out_features: int
    weight: QuantSpec | None
    input: QuantSpec | None
    note: str

class Stage:
    until: Bound
    weight_bits: int | None
    input_bits: int | None

class Plan:
    """What happens to each layer, and when. ``str(plan)`` is a table."""

    layers: list[LayerPlan]
    stages: list[Stage]
    untouched: int
    kv_cache: KvCacheSpec | None

def make_plan(recipe: Recipe, layers: list[LayerInfo]) -> Plan: ...
def with_types(plan: Plan, types: dict[str, str], scale_dtype: str = "bfloat16") -> Plan: ...
def retyped(layer: LayerPlan, type: str, scale_dtype: str = "bfloat16") -> LayerPlan: ...
def searched_plan(plan: Plan) -> Plan: ...
def weight_of_type(spec: QuantSpec, type: str, scale_dtype: str = "bfloat16") -> QuantSpec: ...
def misfit(spec: QuantSpec, layer: LayerPlan) -> str: ...
def size_of_weight(spec: QuantSpec, rows: int, cols: int, scale_bits: int = 0) -> int: ...
def with_widths(plan: Plan, widths: dict[str, int]) -> Plan: ...
def float8_plan(plan: Plan) -> Plan: ...
def naive_plan(plan: Plan, bits: int) -> Plan: ...

class BitSchedule:
    """Widths as a pure function of the step; 0 (``FLOAT``) is not quantized."""

    def __init__(self, recipe: Recipe, total_steps: int) -> None: ...
    total_steps: int
    def stage_at(self, step: int) -> int: ...
    def weight_bits(self, step: int, target: int) -> int: ...
    def input_bits(self, step: int, target: int) -> int: ...
    def observing(self, step: int) -> bool: ...
    def boundaries(self) -> list[int]: ...

class KvCacheSpec:
    """How the cache of keys and values is quantized (numerics.md 28)."""

    def __init__(self, key: QuantSpec, value: QuantSpec, *, recent: int = 0, first: int = 0) -> None: ...
    key: QuantSpec
    value: QuantSpec
    recent: int
    first: int
    calibrated: bool
    mixes: bool

class KvCache:
    """The cache of one attention layer. Keys and values are ``[batch, heads, tokens, head_size]``.

    Raises:
        ValueError: A group does not divide ``head_size``.
    """

    def __init__(self, spec: KvCacheSpec, heads: int, head_size: int) -> None: ...
    def observe(self, key: Tensor, value: Tensor) -> None: ...
    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor: ...
    key_scale: Tensor | None
    value_scale: Tensor | None
    ignored: int

class QuantizedWeights:
    """One layer as exporters see it: ``weight = (codes - zero_point) * scale``.

    With scales on two levels ``codes * (scale * outer_scale)``, with offsets ``+ offset * outer_offset``, ``scale`` and
    ``offset`` being codes then.
    """

    name: str
    weight: QuantSpec
    input: QuantSpec | None
    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    offset: Tensor | None
    outer_scale: Tensor | None
    outer_offset: Tensor | None
    input_scale: Tensor | None
    input_zero_point: Tensor | None
    bits_per_weight: float
    def dequantize(self, dtype: dtype | None = None) -> Tensor: ...

def quantize_weights(
    name: str,
    spec: QuantSpec,
    weight: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    dtype: dtype,
    outer_scale: Tensor | None = None,
    outer_offset: Tensor | None = None,
) -> QuantizedWeights: ...

class PackedWeights:
    """A weight as ``ops.packed_linear`` takes it."""

    panels: Tensor
    scale: Tensor
    zero_point: Tensor | None
    bits: int
    group_size: int

def pack_weights(weights: QuantizedWeights) -> PackedWeights: ...

class CheckpointPlan:
    """What a configuration is made from: layers without tensors, layers that stay float, the cache."""

    def __init__(
        self, layers: list[LayerPlan], ignore: list[str] = ..., kv_cache: KvCacheSpec | None = None
    ) -> None: ...
    layers: list[LayerPlan]
    ignore: list[str]
    kv_cache: KvCacheSpec | None

class Format:
    """A checkpoint format (``qat/checkpoint/formats/format.h``)."""

    name: str
    used_by: str
    dtype: dtype | None
    number_types: list[str]
    def refusal(self, layer: LayerPlan) -> str: ...
    def tensors(self, layer: QuantizedWeights) -> dict[str, Tensor]: ...
    def documents(self, plan: CheckpointPlan) -> dict[str, str]: ...
    def bits_per_weight(self, layer: QuantizedWeights) -> float: ...
    def size_of_weight(self, spec: QuantSpec, rows: int, cols: int, scale_bits: int = 0) -> int: ...
    def check(self, plan: CheckpointPlan) -> None: ...

def formats() -> list[Format]: ...
def find_format(name: str) -> Format: ...
def fused_layers() -> list[list[str]]: ...
def fusion_warning(plan: CheckpointPlan) -> str: ...
def holds_kv_cache(spec: KvCacheSpec) -> bool: ...
def gguf_type(spec: QuantSpec, columns: int) -> str: ...

class Checkpoint:
    """What ``load_checkpoint`` reads of a folder in the format ``safetensors``."""

    layers: list[QuantizedWeights]
    others: dict[str, Tensor]

def load_checkpoint(folder: str | PathLike[str]) -> Checkpoint: ...
def save_safetensors(path: str | PathLike[str], tensors: dict[str, Tensor], metadata: dict[str, str] = ...) -> None: ...
def load_safetensors(path: str | PathLike[str]) -> dict[str, Tensor]: ...
def check_safetensors(path: str | PathLike[str]) -> None: ...

class SafetensorsReader:
    """A file whose tensors are read one at a time, by copying."""

    def __init__(self, path: str | PathLike[str]) -> None: ...
    def names(self) -> list[str]: ...
    def read(self, name: str) -> Tensor: ...
    def shape_of(self, name: str) -> list[int]: ...

class WeightCache:
    """What a layer keeps of its quantized weight while the weight stays as it is: ``none``, ``codes`` or ``weights``.

    ``auto`` keeps nothing and knows the ``dtype`` that was asked for last; ``version`` counts how often it made anew.
    """

    def __init__(self, policy: str = "none") -> None: ...
    policy: str
    bytes: int
    dtype: dtype | None
    version: int
    def get(
        self,
        quantizer: str,
        weight: Tensor,
        scale: Tensor | None,
        zero_point: Tensor | None,
        dtype: dtype,
        outer_scale: Tensor | None = None,
    ) -> list[Tensor]: ...
    def clear(self) -> None: ...

def fill_caches(
    caches: list[WeightCache],
    quantizers: list[str],
    weights: list[Tensor],
    scales: list[Tensor | None],
    zero_points: list[Tensor | None],
    outer_scales: list[Tensor | None],
) -> None: ...

class BlockTraining:
    """Training of one block after the other (``initialize.block_training``)."""

    steps: int
    batch_size: int
    learning_rate: float
    scale_learning_rate: float
    rounding: str

class Initialize:
    """What happens to weights before training, or instead of it: the recipe's ``initialize``.

    Raises:
        ValueError: ``method`` is not one of those that a recipe may name.
    """

    def __init__(self, method: str = "mse") -> None: ...
    method: str
    transforms: list[str]
    rounding: str
    damping: float
    block_size: int
    sweeps: int
    order: str
    scale_search: str
    correction: float
    objective: str
    smoothing: float
    rotation_size: int
    sequential: bool
    block_training: BlockTraining
    keeps_scales: bool
    weighs_outputs: bool
    needs_data: bool

class Observer:
    """The range of everything that passed, or as much of it as the spec's observer keeps (numerics.md 24 to 27)."""

    def __init__(self, spec: QuantSpec) -> None: ...
    def observe(self, x: Tensor) -> None: ...
    def restore(self, low: float | Tensor, high: float | Tensor) -> None: ...
    def reset(self) -> None: ...
    def qparams(self, spec: QuantSpec, bits: int) -> tuple[Tensor, Tensor]: ...
    def range(self) -> tuple[Tensor, Tensor]: ...
    observed: bool
    empty: bool
    low: float
    high: float
    ignored: int

class InputStatistics:
    """Second moments and magnitudes of a layer's inputs, numerics.md (14). Tokens that are not finite are counted apart."""

    def __init__(self, features: int, drift: bool = False) -> None: ...
    def add(self, x: Tensor, original: Tensor | None = None) -> None: ...
    hessian: Tensor
    drift: Tensor | None
    mean_magnitude: Tensor
    max_magnitude: Tensor
    features: int
    tokens: int
    ignored: int

class RoundedWeight:
    """A weight on its grid; ``target`` has the same codes and is what training starts from (numerics.md 18)."""

    weight: Tensor
    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    target: Tensor
    loss: float
    warning: str

def gptq(
    weight: Tensor,
    hessian: Tensor,
    spec: QuantSpec,
    bits: int,
    damping: float = 0.01,
    block_size: int = 128,
    order: str = "group",
    scale_search: str = "mse",
    correction: float = 0.0,
    drift: Tensor | None = None,
    outer_scale: Tensor | None = None,
    outer_offset: Tensor | None = None,
    output_hessian: Tensor | None = None,
    output_damping: float = 0.1,
    sweeps: int = 4,
) -> RoundedWeight: ...

class ChannelScale:
    """Scales of channels float32 ``[in]``, the output's error with them, and without."""

    scale: Tensor
    loss: float
    plain: float

def awq_scale(
    layers: list[tuple[Tensor, QuantSpec, int]], inputs: InputStatistics, points: int = 20, shares: list[int] = []
) -> ChannelScale: ...
def smoothing_scale(weights: list[Tensor], max_magnitude: Tensor, alpha: float) -> Tensor: ...
def clipped_qparams(
    weight: Tensor,
    hessian: Tensor,
    spec: QuantSpec,
    bits: int,
    outer_scale: Tensor | None = None,
    outer_offset: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...
def output_error(error: Tensor, hessian: Tensor) -> float: ...
def random_rotation(size: int, seed: int) -> Tensor: ...
def has_hadamard(size: int) -> bool: ...
def allocate_widths(layers: list[list[tuple[int, float, int]]], budget: int) -> list[int]: ...
