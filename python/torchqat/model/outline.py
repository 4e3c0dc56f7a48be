"""A model's folder read tensor by tensor, and a model without weights to put them into."""

from pathlib import Path

import torch
from torch import Tensor, nn

from torchqat._library import DTYPES, FileError, SafetensorsReader
from torchqat.errors import UserError, first_line
from torchqat.extras import needs


class CheckpointReader:
    """The tensors of a Hugging Face folder, by name, in one safetensors file or several.

    Raises:
        UserError: There is no safetensors file, or one is damaged.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._files: dict[str, SafetensorsReader] = {}
        try:
            for path in sorted(self.folder.glob("*.safetensors")):
                reader = SafetensorsReader(str(path))
                self._files.update(dict.fromkeys(reader.names(), reader))
        except FileError as error:
            raise UserError(str(error)) from error
        if not self._files:
            raise UserError(f"To be read tensor by tensor, {folder} must have safetensors files, but has none.")

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._files:
            raise UserError(f"{self.folder} must hold the tensor {name}, but does not.")
        return self._files[name].read(name)

    def shape_of(self, name: str) -> tuple[int, ...]:
        return tuple(self._files[name].shape_of(name))

    @torch.no_grad()
    def fill(self, module: nn.Module, prefix: str, recurse: bool = True) -> None:
        """Give ``module`` the parameters and persistent buffers that the checkpoint has for it, in the module's dtypes."""
        for holder_name, holder in module.named_modules(prefix=prefix) if recurse else [(prefix, module)]:
            for kind in (holder._parameters, holder._buffers):
                for leaf, empty in kind.items():
                    name = f"{holder_name}.{leaf}" if holder_name else leaf
                    if empty is None or (kind is holder._buffers and name not in self):
                        continue
                    tensor = self[name].to(empty.dtype)
                    if tensor.shape != empty.shape:
                        raise UserError(
                            f"{name} must be {tuple(empty.shape)} for this model, but {self.folder} has "
                            f"{tuple(tensor.shape)}."
                        )
                    is_parameter = kind is holder._parameters
                    kind[leaf] = nn.Parameter(tensor, empty.requires_grad) if is_parameter else tensor


def skeleton(folder: str | Path, dtype: str = "float32") -> nn.Module:
    """The model of a folder, its parameters on the meta device, where they take no memory.

    Raises:
        UserError: The folder does not hold a causal language model.
    """
    with needs("hf", "A model's outline"):
        from accelerate import init_empty_weights
        from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype], trust_remote_code=False)
    except Exception as error:
        raise UserError(
            f"model must be a folder with a causal language model that transformers can load, but {folder} is not: "
            f"{first_line(error)}"
        ) from error
    return model.eval()


def empty(module: nn.Module, buffers: bool = False) -> nn.Module:
    """Give the memory of the parameters back, and that of the buffers where asked, in place; what is shared stays so."""
    moved: dict[int, nn.Parameter] = {}
    for holder in module.modules():
        if buffers:
            holder._buffers.update({n: b.to("meta") for n, b in holder._buffers.items() if b is not None})
        for leaf, parameter in holder._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in moved:
                moved[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
            holder._parameters[leaf] = moved[id(parameter)]
    return module
