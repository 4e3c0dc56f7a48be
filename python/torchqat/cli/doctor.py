"""``doctor``: what this machine has, and what each missing extra would bring."""

import importlib.metadata
import platform
import shutil

import typer

_EXTRAS = {
    "vllm": "serving the checkpoint in vLLM",
    "llama-cpp-python": "running GGUF files",
    "gptqmodel": "reading GPTQ and AWQ checkpoints",
    "lm-eval": "evaluation on public tasks",
}


def register(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor() -> None:
    """Versions, processor, GPU, and what each missing extra would bring."""
    import torch

    import torchqat

    rows = [
        ("torchqat", torchqat.__version__),
        ("python", platform.python_version()),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        ("operators", f"loaded, {torchqat.ops.cpu_capability()} kernels (TORCHQAT_CPU_CAPABILITY chooses)"),
        ("gpu", torch.cuda.get_device_name() if torch.cuda.is_available() else "none visible to torch"),
        ("gpu operators", "built" if _has_cuda_kernels() else "not built: torch has no CUDA here"),
        ("nvcc", shutil.which("nvcc") or "none: the CUDA sources cannot be compiled here"),
        *((name, _version(name)) for name in ("transformers", "tokenizers", "safetensors", "compressed-tensors")),
        *((name, _version(name, f"missing; for {use}: pip install {name}")) for name, use in _EXTRAS.items()),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        typer.echo(f"{name:<{width}}  {value}")


def _has_cuda_kernels() -> bool:
    import torch

    return torch._C._dispatch_has_kernel_for_dispatch_key("qat::fake_quantize", "CUDA")


def _version(distribution: str, missing: str = "missing: pip install torchqat again") -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return missing
