"""Loads the native libraries, once, and says in one sentence why they do not load."""

import re
from importlib import metadata

import torch

REBUILD = "run pip install --no-build-isolation --force-reinstall --no-deps on torchqat again"


def _minor(version: str) -> tuple[str, ...]:
    return tuple(version.split("+")[0].split(".")[:2])


def _required_torch() -> str | None:
    """The minor version of torch that the wheel says it was built for (setup.py)."""
    try:
        required = metadata.requires("torchqat") or []
    except metadata.PackageNotFoundError:
        return None
    return next((found[1] for one in required if (found := re.match(r"torch==(\d+\.\d+)\.\*", one))), None)


def _another_torch(built: str) -> ImportError:
    minor = ".".join(_minor(built))
    return ImportError(
        f"torchqat was built for torch {built}, but torch {torch.__version__} is installed: run pip install "
        f"'torch=={minor}.*', or, to build torchqat for this one, {REBUILD}."
    )


try:
    import torchqat._C as _C
except ImportError as error:
    built = _required_torch()
    if built is not None and _minor(built) != _minor(torch.__version__):
        raise _another_torch(built) from error
    raise ImportError(
        f"The native library of torchqat does not load beside torch {torch.__version__}: {REBUILD}. ({error})"
    ) from error

if _minor(_C.built_for_torch) != _minor(torch.__version__):
    raise _another_torch(_C.built_for_torch)

BUILT_WITH_CUDA = _C.built_with_cuda

BitSchedule = _C.BitSchedule
BlockTraining = _C.BlockTraining
Bound = _C.Bound
Checkpoint = _C.Checkpoint
CheckpointPlan = _C.CheckpointPlan
DataSection = _C.DataSection
DataSource = _C.DataSource
DistillSection = _C.DistillSection
FileError = _C.FileError
Format = _C.Format
Initialize = _C.Initialize
InputStatistics = _C.InputStatistics
KvCache = _C.KvCache
KvCacheSpec = _C.KvCacheSpec
LayerInfo = _C.LayerInfo
LayerPlan = _C.LayerPlan
LoraSection = _C.LoraSection
Observer = _C.Observer
OscillationSection = _C.OscillationSection
PackedWeights = _C.PackedWeights
Plan = _C.Plan
QuantSpec = _C.QuantSpec
QuantizedWeights = _C.QuantizedWeights
Recipe = _C.Recipe
RecipeKey = _C.RecipeKey
SafetensorsReader = _C.SafetensorsReader
ScratchModel = _C.ScratchModel
TrainSection = _C.TrainSection
RecipeError = _C.RecipeError
WeightCache = _C.WeightCache
FLOAT = _C.FLOAT

RecipeError.__doc__ = "What is wrong with a recipe: every problem, one ``file:line:column: sentence`` a line."
FileError.__doc__ = "A file that cannot be read or written, or is damaged."

allocate_widths = _C.allocate_widths
awq_scale = _C.awq_scale
check_safetensors = _C.check_safetensors
clipped_qparams = _C.clipped_qparams
fill_caches = _C.fill_caches
find_format = _C.find_format
formats = _C.formats
float8_plan = _C.float8_plan
fused_layers = _C.fused_layers
fusion_warning = _C.fusion_warning
gguf_type = _C.gguf_type
gptq = _C.gptq
holds_kv_cache = _C.holds_kv_cache
load_checkpoint = _C.load_checkpoint
load_recipe = _C.load_recipe
load_safetensors = _C.load_safetensors
make_plan = _C.make_plan
misfit = _C.misfit
naive_plan = _C.naive_plan
output_error = _C.output_error
pack_weights = _C.pack_weights
parse_recipe = _C.parse_recipe
preset = _C.preset
quantize_weights = _C.quantize_weights
random_rotation = _C.random_rotation
recipe_keys = _C.recipe_keys
retyped = _C.retyped
save_safetensors = _C.save_safetensors
searched_plan = _C.searched_plan
size_of_weight = _C.size_of_weight
smoothing_scale = _C.smoothing_scale
weight_of_type = _C.weight_of_type
with_types = _C.with_types
with_widths = _C.with_widths

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
