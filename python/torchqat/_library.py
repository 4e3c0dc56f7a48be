"""Loads the native libraries, once, and says in one sentence why they do not load."""

import torch

_REBUILD = "run pip install --no-build-isolation --force-reinstall --no-deps on torchqat again"


def _minor(version: str) -> tuple[str, ...]:
    return tuple(version.split("+")[0].split(".")[:2])


try:
    from torchqat import _C
except ImportError as error:
    raise ImportError(
        f"The native library of torchqat does not load beside torch {torch.__version__}: {_REBUILD}. ({error})"
    ) from error

if _minor(_C.built_for_torch) != _minor(torch.__version__):
    raise ImportError(
        f"torchqat was built for torch {_C.built_for_torch}, but torch {torch.__version__} is installed: {_REBUILD}."
    )

BitSchedule = _C.BitSchedule
Bound = _C.Bound
CompressedTensors = _C.CompressedTensors
FileError = _C.FileError
LayerInfo = _C.LayerInfo
LayerPlan = _C.LayerPlan
Plan = _C.Plan
QuantSpec = _C.QuantSpec
QuantizedWeights = _C.QuantizedWeights
Recipe = _C.Recipe
ScratchModel = _C.ScratchModel
TrainSection = _C.TrainSection
RecipeError = _C.RecipeError
WeightCache = _C.WeightCache
FLOAT = _C.FLOAT

check_safetensors = _C.check_safetensors
fusion_problems = _C.fusion_problems
load_recipe = _C.load_recipe
load_safetensors = _C.load_safetensors
make_plan = _C.make_plan
naive_plan = _C.naive_plan
parse_recipe = _C.parse_recipe
quantize_weights = _C.quantize_weights
save_safetensors = _C.save_safetensors
to_compressed_tensors = _C.to_compressed_tensors

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
