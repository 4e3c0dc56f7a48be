"""Inputs for any model: what its forward takes, in the sizes that its configuration says."""

import inspect

import torch
from torch import Tensor, nn

from model_zoo.models import Entry
from model_zoo.shrink import FIRST_ORDINARY_TOKEN

ROWS, LENGTH = 2, 24
# Types that take texts of some lengths only.
_LENGTHS = {"reformer": 128, "xlstm": 32}


def batches(entry: Entry, model: nn.Module, count: int) -> list[dict[str, Tensor]]:
    """``count`` batches of arguments, all different, always the same."""
    generator = torch.Generator().manual_seed(1)
    return [_batch(entry, model, generator) for _ in range(count)]


def _batch(entry: Entry, model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    config, takes = model.config, inspect.signature(model.forward).parameters
    found: dict[str, Tensor] = {}
    if "input_ids" in takes and not entry.purpose.startswith(("image cl", "speech", "sound")):
        found["input_ids"] = _tokens(config, generator, _LENGTHS.get(entry.kind, LENGTH))
    if config.is_encoder_decoder and entry.purpose != "text":
        found["decoder_input_ids"] = _tokens(config, generator, 12)
    if entry.purpose.startswith("image") or ("pixel_values" in takes and entry.purpose == "vectors"):
        found |= _images(model, takes, generator)
    if entry.purpose.startswith(("speech", "sound")):
        found |= _sounds(entry, config, takes, generator)
    if entry.purpose == "image and text":
        found["input_ids"] = _with_images(model, found)
        if "mm_token_type_ids" in takes:
            found["mm_token_type_ids"] = (found["input_ids"] == _image_token(config)).long()
        if "token_type_ids" in takes:
            found["token_type_ids"] = (found["input_ids"] == _image_token(config)).long()
    if entry.kind in ("musicgen", "musicgen_melody"):  # a row a codebook
        found["input_ids"] = found["input_ids"].repeat(config.num_codebooks, 1)
    if entry.kind == "blt":  # transformers' cache knows no model without num_hidden_layers
        found["use_cache"] = False
    return found


def _tokens(config, generator: torch.Generator, length: int) -> Tensor:
    vocabulary = config.get_text_config(decoder=True).vocab_size
    return torch.randint(FIRST_ORDINARY_TOKEN, vocabulary, (ROWS, length), generator=generator)


def _images(model: nn.Module, takes, generator: torch.Generator) -> dict[str, Tensor]:
    vision = getattr(model.config, "vision_config", model.config)
    if "image_grid_thw" in takes:  # patches of all images, one after the other
        merge, patch = vision.spatial_merge_size, vision.patch_size
        grid = torch.tensor([[1, 2 * merge, 2 * merge]] * ROWS)
        channels = getattr(vision, "in_channels", getattr(vision, "in_chans", 3))
        values = channels * vision.temporal_patch_size * patch * patch
        return {"pixel_values": _random(generator, int(grid.prod(1).sum()), values), "image_grid_thw": grid}
    size = getattr(vision, "image_size", None) or 32
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    pixels = _random(generator, ROWS, getattr(vision, "num_channels", 3), height, width)
    if "image_position_ids" in takes:  # Gemma 4: flat patches and where they were
        patch, side = vision.patch_size, 2 * vision.pooling_kernel_size
        places = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="xy"), -1).reshape(
            1, -1, 2
        )
        pixels = torch.rand(ROWS, side * side, 3 * patch * patch, generator=generator)
        return {"pixel_values": pixels, "image_position_ids": places.expand(ROWS, -1, -1)}
    if "pixel_attention_mask" in takes and hasattr(model, "get_image_features"):  # a list of images a row
        return {"pixel_values": pixels[:, None]}
    if "aspect_ratio_ids" in takes:  # tiles of images
        tiles = vision.max_num_tiles
        return {
            "pixel_values": pixels[:, None, None].expand(-1, -1, tiles, -1, -1, -1).contiguous(),
            "aspect_ratio_ids": torch.ones(ROWS, 1, dtype=torch.int64),
            "aspect_ratio_mask": torch.ones(ROWS, 1, tiles, dtype=torch.int64),
        }
    if "image_sizes" in takes and hasattr(model.config, "image_grid_pinpoints"):  # the whole and its tiles
        tiles = pixels[:, None].expand(-1, 3, -1, -1, -1).contiguous()
        return {"pixel_values": tiles, "image_sizes": torch.tensor([[height, width]] * ROWS)}
    if "image_sizes" in takes and vision.model_type == "pixtral":
        return {"pixel_values": pixels, "image_sizes": torch.tensor([[height, width]] * ROWS)}
    return {"pixel_values": pixels}


def _sounds(entry: Entry, config, takes, generator: torch.Generator) -> dict[str, Tensor]:
    if "input_features" in takes:
        mel = getattr(config, "num_mel_bins", getattr(config, "input_feat_per_channel", 80))
        if entry.kind == "whisper":
            return {"input_features": _random(generator, ROWS, mel, 2 * config.max_source_positions)}
        return {"input_features": _random(generator, ROWS, 64, mel)}
    if hasattr(config, "num_mel_bins"):
        return {"input_values": _random(generator, ROWS, config.max_length, config.num_mel_bins)}
    return {"input_values": _random(generator, ROWS, 4000)}


def _image_token(config) -> int:
    return getattr(config, "image_token_id", None) or getattr(config, "image_token_index", -1)


def _with_images(model: nn.Module, found: dict[str, Tensor]) -> Tensor:
    """Tokens with one of an image for each of its features: how many these are is asked of the model."""
    tokens = found["input_ids"]
    if not hasattr(model, "get_image_features") and not hasattr(model.model, "get_image_features"):
        return tokens
    owner = model if hasattr(model, "get_image_features") else model.model
    images = {key: value for key, value in found.items() if "token" not in key and "input_ids" not in key}
    with torch.no_grad():
        features = owner.get_image_features(**images).pooler_output
    rows = features if isinstance(features, (list, tuple)) else [features]
    count = sum(row.numel() // row.shape[-1] for row in rows) // ROWS
    return torch.cat([tokens[:, :4], torch.full((ROWS, count), _image_token(model.config)), tokens[:, 4:]], 1)


def _random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)
