"""A GGUF file as a model: whether transformers, which passes over what it does not know, has read all of it."""

from pathlib import Path

from torch import nn

from torchqat.errors import UserError
from torchqat.extras import needs


def check_read_whole(path: str, model: nn.Module) -> None:
    """Whether ``model`` is all that the file says.

    Raises:
        UserError: The file stretches positions, or has tensors that the model does not.
    """
    with needs("hf", "A GGUF file"):
        from gguf import GGUFReader

    reader = GGUFReader(Path(path))
    architecture = reader.fields["general.architecture"].contents()
    scaling = reader.fields.get(f"{architecture}.rope.scaling.type")
    stretches = [tensor.name for tensor in reader.tensors if tensor.name.startswith("rope_")]
    if scaling is not None and scaling.contents() != "none":
        stretches.append(scaling.name)
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    if stretches and rope.get("rope_type", "default") == "default":
        raise UserError(
            f"model must be read as it is, but transformers passes over {stretches[0]} of {path}, which stretches "
            "positions: give the model that it was made from."
        )
    held = sum(int(tensor.n_elements) for tensor in reader.tensors if tensor.name not in stretches)
    taken = sum(parameter.numel() for parameter in model.parameters())
    if held > taken:
        raise UserError(
            f"model must be read as it is, but transformers takes {taken} of the {held} elements of {path}: give the model "
            "that it was made from."
        )
