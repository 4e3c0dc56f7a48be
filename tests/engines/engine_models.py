"""What engines are asked with: weights as their formats take them, and models prepared with them."""

import os

import pytest
import torchqat
from torchqat.verification.engines import ENGINES

GROUPS = "{dtype: int4, group_size: 32, grid: full, scale: learned}"
HALF = "{dtype: int4, group_size: 32, grid: full, scale_dtype: float16}"
OFFSET = "{dtype: int4, group_size: 32, symmetric: false, scale_dtype: float16}"
# llama.cpp's Q4_0 and Q8_0
SIGNED = "{dtype: int4, group_size: 32, grid: signed, scale_dtype: float16}"
IN_EIGHT_BITS = "{dtype: int8, group_size: 32, scale_dtype: float16}"


def needs(engine):
    variable = ENGINES[engine].variable()
    if variable not in os.environ:
        pytest.skip(f"{variable} must name the Python of {engine}; make test-engines sets it")


def prepared(model, weight, input, other, prompts):
    rule = f'  - {{match: "model.layers.*", weight: {weight}{f", input: {input}" if input else ""}}}\n'
    model = torchqat.prepare(model, torchqat.parse_recipe(f"version: 1\nlayers:\n{rule}{other}")).eval()
    torchqat.calibrate(model, [prompts], lambda m, batch: m(input_ids=batch, use_cache=False))
    return model
