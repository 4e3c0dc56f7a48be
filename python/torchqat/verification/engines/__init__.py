"""The engines that serve our checkpoints and that ``verify`` asks for their opinion."""

from collections.abc import Iterable

from torch import nn

from torchqat._library import KvCacheSpec, LayerPlan
from torchqat.errors import UserError
from torchqat.verification.engines.caches import (
    FLOATING_CACHES,
    LLAMA_CPP_CACHES,
    MLX_CACHES,
    NO_CACHES,
    OPENVINO_CACHES,
    TRANSFORMERS_CACHES,
    VLLM_CACHES,
)
from torchqat.verification.engines.engine import Engine
from torchqat.verification.engines.limits import executorch_refusal, onnxruntime_genai_refusal, openvino_refusal
from torchqat.verification.engines.question import Bench, Question, Served, Speed

TRANSFORMERS = Engine(
    name="transformers",
    modules={
        "compressed-tensors": "compressed_tensors",
        "compressed-tensors-0.18": "compressed_tensors",
        "gptq": "gptqmodel",
        "gptq_v2": "gptqmodel",
        "awq": "gptqmodel",
        "mxfp4": "transformers",
        "dense": "transformers",
    },
    install="pip install torchqat[gptqmodel]",
    caches=TRANSFORMERS_CACHES,
    kl_bound=1e-3,
    float32_kl_bound=1e-7,
    margin=0.1,
    why="the weights are the same, so that only the order in which a matrix product adds, and the dtype it adds in, differ",
)
VLLM = Engine(
    name="vllm",
    modules=dict.fromkeys(("compressed-tensors", "gptq", "awq"), "vllm"),
    install="pip install torchqat[vllm]",
    caches=VLLM_CACHES,
    kl_bound=2e-3,
    margin=0.25,
    why="activations are rounded to half precision after other operations than in transformers, through every layer",
    float4_devices=("cuda",),  # its CPU build has no linear layer for them
)
LLAMA_CPP = Engine(
    name="llama.cpp",
    modules={"gguf": "llama_cpp"},
    install="pip install torchqat[llama-cpp]",
    caches=LLAMA_CPP_CACHES,
    kl_bound=5e-3,
    margin=0.5,
    why="llama.cpp rounds what enters a matrix product to 8 bits in blocks of 32, and its cache to float16",
)
MLX = Engine(
    name="mlx",
    modules={"mlx": "mlx_lm"},
    install="pip install torchqat[mlx]",
    caches=MLX_CACHES,
    kl_bound=2e-3,
    float32_kl_bound=1e-7,
    margin=0.25,
    why="the weights are the same, so that only the order in which a matrix product adds, and the dtype it adds in, differ",
)
OPENVINO = Engine(
    name="openvino",
    modules={"gguf": "openvino_genai"},
    install="pip install torchqat[openvino]",
    caches=OPENVINO_CACHES,
    kl_bound=1e-3,
    margin=0.1,
    why="the weights are the same, so that only what the file rounds to float16 and the order in which products add differ",
    float4_devices=(),
    refusal=openvino_refusal,
)
ONNXRUNTIME_GENAI = Engine(
    name="onnxruntime-genai",
    modules=dict.fromkeys(("gptq", "awq"), "onnxruntime_genai"),
    install="pip install torchqat[onnxruntime-genai]",
    caches=FLOATING_CACHES,
    kl_bound=1e-3,
    margin=0.1,
    why="the weights are the same, so that only what the file rounds to float16 and the order in which products add differ",
    float4_devices=(),
    refusal=onnxruntime_genai_refusal,
)
EXECUTORCH = Engine(
    name="executorch",
    modules={"safetensors": "executorch"},
    install="pip install torchqat[executorch]",
    caches=NO_CACHES,
    kl_bound=1e-3,
    margin=0.1,
    why="weights and the rule that rounds inputs are the same, so that only the order in which products add differs",
    float4_devices=(),
    refusal=executorch_refusal,
)
_ALL = (TRANSFORMERS, VLLM, LLAMA_CPP, MLX, OPENVINO, ONNXRUNTIME_GENAI, EXECUTORCH)
ENGINES = {engine.name: engine for engine in _ALL}

# Those that run something else than language models, or nothing.
OTHERS = ("onnxruntime", "reader")


def find_engine(name: str) -> Engine:
    """The engine called ``name``.

    Raises:
        UserError: There is none.
    """
    if name not in ENGINES:
        raise UserError(f"engine must be {' or '.join([*ENGINES, *OTHERS])}, but is {name}.")
    return ENGINES[name]


def check_engine(name: str, model: nn.Module, layers: Iterable[LayerPlan], cache: KvCacheSpec | None = None) -> None:
    """Whether the engine called ``name``, if it is one, computes what ``model`` does with ``layers``, which are planned.

    Args:
        name: Of the engine.
        model: What would run in it, or its outline.
        layers: Those to be quantized.
        cache: How keys and values are to be, if they are.

    Raises:
        UserError: It does not.
    """
    if name in ENGINES:
        ENGINES[name].check(model, layers, cache)


def engine_formats(name: str) -> tuple[str, ...]:
    """The formats that the engine called ``name`` loads; none where there is no such engine."""
    if name == "onnxruntime":
        return ("onnx",)
    return ENGINES[name].formats if name in ENGINES else ()


__all__ = [
    "ENGINES",
    "EXECUTORCH",
    "LLAMA_CPP",
    "MLX",
    "ONNXRUNTIME_GENAI",
    "OPENVINO",
    "OTHERS",
    "TRANSFORMERS",
    "VLLM",
    "Bench",
    "Engine",
    "Question",
    "Served",
    "Speed",
    "check_engine",
    "engine_formats",
    "find_engine",
]
