"""A picture for a model that reads text and images, made by the processor that came with it."""

from collections.abc import Callable

from torch import Tensor, nn

from torchqat.errors import UserError, first_line
from torchqat.model.source import is_gguf
from torchqat.model.towers import language_model

_WORDS = "What is this?"
_SIZE = (64, 48)


def image_example(path: str, model: nn.Module, note: Callable[[str], None]) -> dict[str, Tensor] | None:
    """Inputs of ``model`` with one image and a few words, by name.

    Args:
        path: Where the model came from, with its processor.
        model: Any.
        note: Told why there are none, of a model that reads more than text.

    Returns:
        ``None`` of a model of text alone, or where its processor makes none.
    """
    if language_model(model) is None or is_gguf(path):
        return None
    try:
        return _processed(path)
    except Exception as error:  # a library that processors need is missing, or the processor is, or it reads sounds
        note(
            f"What {path} reads beside text is not tried in transformers, since no image was made: {first_line(error)}"
        )
        return None


def _processed(path: str) -> dict[str, Tensor]:
    from PIL import Image
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
    if not hasattr(processor, "image_processor"):
        raise UserError(f"{path} has no processor of images.")
    image = Image.linear_gradient("L").resize(_SIZE).convert("RGB")
    if getattr(processor, "chat_template", None):
        content = [{"type": "image", "image": image}, {"type": "text", "text": _WORDS}]
        found = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
    else:
        token = getattr(processor, "image_token", "<image>")
        found = processor(text=f"{token} {_WORDS}", images=[image], return_tensors="pt")
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}
