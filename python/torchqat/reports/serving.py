"""How each format is loaded, for its card."""

import json
from pathlib import Path

from torchqat.checkpoints.formats.loads import loads_made_dense_alone
from torchqat.checkpoints.formats.naming import is_compressed_tensors
from torchqat.checkpoints.formats.onnx import ACCURACY

_SHELL, _PYTHON = "```sh\n{}\n```\n", "```python\n{}\n```\n"
# What transformers needs beside itself.
_BESIDE = {"compressed-tensors": "compressed-tensors", "gptq": "gptqmodel optimum", "gptq_v2": "gptqmodel optimum"}
_BESIDE |= {
    "compressed-tensors-0.18": "'compressed-tensors>=0.18'",
    "awq": "gptqmodel optimum",
    "mxfp4": "",
    "dense": "",
}


def how_to_load(folder: Path, format: str, place: str, writes_text: bool) -> str:
    """Markdown: commands and code that load the checkpoint in ``folder``.

    Args:
        folder: With its configuration.
        format: Its own.
        place: What readers of the card call it: a folder, or its name on the Hub.
        writes_text: Whether it is a language model.
    """
    if format == "gguf":
        file = sorted(file.name for file in folder.glob("*.gguf"))[0]
        found = f"In [llama.cpp](https://github.com/ggml-org/llama.cpp):\n\n{_SHELL.format(f'llama-server -m {file}')}"
        if (folder / "Modelfile").is_file():
            found += f"\nIn Ollama:\n\n{_SHELL.format('ollama create NAME -f Modelfile')}"
        return found
    if format == "onnx":
        code = (
            "import onnxruntime\n\noptions = onnxruntime.SessionOptions()\n"
            "# In float32: by itself, onnxruntime rounds what enters products with codes to 8 bits, for speed.\n"
            f'options.add_session_config_entry("{ACCURACY}", "1")\n'
            'session = onnxruntime.InferenceSession("model.onnx", options)'
        )
        return f"In onnxruntime:\n\n{_PYTHON.format(code)}"
    if format == "safetensors":
        code = f'import torchqat\n\ntorchqat.load(model, "{place}")  # model: of the architecture that was exported'
        return f"In torchqat, or by C++ programs with LibTorch:\n\n{_PYTHON.format(code)}"
    if format == "modelopt":
        return (
            f"In vLLM; TensorRT-LLM takes it as well:\n\n{_SHELL.format(f'vllm serve {place} --quantization modelopt')}"
        )
    if format == "mlx":
        return f"In mlx-lm (`pip install mlx-lm`):\n\n{_SHELL.format(f'mlx_lm.server --model {place}')}"
    served = f"In vLLM:\n\n{_SHELL.format(f'vllm serve {place}')}\n" if writes_text and format != "gptq_v2" else ""
    return served + _in_transformers(folder, format, place)


def _in_transformers(folder: Path, format: str, place: str) -> str:
    name = "AutoModelForCausalLM"
    config = folder / "config.json"
    known = json.loads(config.read_text(encoding="utf-8")).get("architectures") if config.is_file() else None
    if not known:
        return "By the program that has the model's class: there is no configuration of transformers.\n"
    if known and not known[0].endswith(("ForCausalLM", "LMHeadModel")):
        name = known[0]
    beside = _BESIDE[format]
    needs = f", with `pip install {beside}`" if beside else ""
    imports, options = name, 'dtype="auto"'
    if is_compressed_tensors(format) and loads_made_dense_alone(folder):
        imports, options = f"CompressedTensorsConfig, {name}", 'dtype="auto", quantization_config=dense'
    dense = "dense = CompressedTensorsConfig(dequantize=True)\n" if imports != name else ""
    code = f'from transformers import {imports}\n\n{dense}model = {name}.from_pretrained("{place}", {options})'
    return f"In transformers{needs}:\n\n{_PYTHON.format(code)}"
