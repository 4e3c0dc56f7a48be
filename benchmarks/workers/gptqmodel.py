"""gptqmodel's GPTQ and AWQ on a model, in an environment of its own. See ``common.py`` beside this file."""

import os
import sys
import tempfile
import time

# This file has the name of the package, whose folder must come first.
sys.path.append(sys.path.pop(0))
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # its default of one fails on two cores


def quantize(folder: str, rows: list[list[int]], bits: int, group: int, method: str):
    import torch
    from common import is_encoder

    if is_encoder(folder):
        return quantize_encoder(folder, rows, bits, group)
    from gptqmodel import GPTQModel
    from gptqmodel.quantization.config import AWQConfig, GPTQConfig

    kind = {"gptq": GPTQConfig, "awq": AWQConfig}[method]
    dtype = torch.float32 if method == "gptq" else torch.float16  # all that its AWQ takes
    model = GPTQModel.load(folder, kind(bits=bits, group_size=group, device="cpu", offload_to_disk=False), dtype=dtype)
    begun = time.monotonic()
    model.quantize([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows], batch_size=8)
    seconds = time.monotonic() - begun
    with tempfile.TemporaryDirectory() as output:
        model.save(output)
        return dense(output, method), seconds


def quantize_encoder(folder: str, rows: list[list[int]], bits: int, group: int):
    """It has no encoders, so its solver is walked over one here: layer after layer, on what the rounded ones before give."""
    import torch
    from common import load
    from gptqmodel.quantization.config import GPTQConfig
    from gptqmodel.quantization.gptq import GPTQ

    model = load(folder)
    batches = [torch.tensor(rows[at : at + 8]) for at in range(0, len(rows), 8)]
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "pooler" not in n]
    begun = time.monotonic()
    with torch.no_grad():
        for _, layer in layers:
            solver = GPTQ(layer, GPTQConfig(bits=bits, group_size=group, device="cpu", offload_to_disk=False))
            solver.quantizer.configure(perchannel=True)
            hook = layer.register_forward_hook(lambda _, x, y, s=solver: s.add_batch(x[0], y))
            for batch in batches:
                model(input_ids=batch)
            hook.remove()
            layer.weight.copy_(solver.quantize()[0])
    return model.state_dict(), time.monotonic() - begun


def dense(folder: str, method: str) -> dict:
    """The saved checkpoint with dense weights, by the library's own unpacking, its scales taken as they were saved."""
    from pathlib import Path

    from gptqmodel import BACKEND, GPTQModel
    from safetensors.torch import load_file

    saved = {k: v for file in Path(folder).glob("*.safetensors") for k, v in load_file(file).items()}
    loaded = GPTQModel.load(folder, device="cpu", backend=BACKEND.TORCH_AWQ if method == "awq" else BACKEND.TORCH)
    state = {name: tensor for name, tensor in saved.items() if name.endswith((".weight", ".bias"))}
    for name, layer in loaded.model.named_modules():
        if hasattr(layer, "qweight"):
            layer.scales = saved[f"{name}.scales"].float()
            state[f"{name}.weight"] = unpacked(layer, method).T.contiguous()
    return state


def unpacked(layer, method: str):
    """``[in, out]``."""
    if method == "gptq":
        return layer.dequantize_weight()
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    return dequantize_gemm(layer.qweight, layer.qzeros, layer.scales, layer.bits, layer.group_size)


if __name__ == "__main__":
    from common import main

    main(quantize)
