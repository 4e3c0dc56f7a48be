"""What engines would compute otherwise is refused, though a format that they load holds it (shown in tests/engines)."""

import pytest
import torchqat
from architectures import build
from sentences import matches, sentence
from small_net import recipe_for
from torchqat.checkpoints.formats.tensors import checkpoint_plan
from torchqat.verification.engines import EXECUTORCH, ONNXRUNTIME_GENAI, OPENVINO

HALF = "{dtype: int4, group_size: 32, scale_dtype: float16}"
SIGNED = "{dtype: int4, group_size: 32, grid: signed, scale_dtype: float16}"


def checked(engine, weight, kind="Llama", **settings):
    model = torchqat.prepare(build(kind, hidden_size=64, intermediate_size=128, **settings), recipe_for(weight))
    plan = checkpoint_plan(model).layers
    engine.check(model, plan)
    return plan[0].name


def refused(engine, why):
    return pytest.raises(torchqat.UserError, match=matches("engine.cannot-run", engine=engine.name, why=why))


def test_openvino_takes_blocks_of_one_scale():
    name = checked(OPENVINO, SIGNED)
    with refused(OPENVINO, sentence("engine.because-types", name=name, found="Q5_0")):
        checked(OPENVINO, "{dtype: q5_0}")
    with refused(OPENVINO, sentence("engine.because-architecture", kind="gemma")):
        checked(OPENVINO, SIGNED, "Gemma")
    linear = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
    with refused(OPENVINO, sentence("engine.because-positions", rope="linear")):
        checked(OPENVINO, SIGNED, rope_parameters=linear)


def test_onnxruntime_genai_takes_codes_of_4_and_8_bits_in_groups():
    name = checked(ONNXRUNTIME_GENAI, HALF)
    with refused(ONNXRUNTIME_GENAI, sentence("engine.because-codes", name=name, bits=3)):
        checked(ONNXRUNTIME_GENAI, "{dtype: int3, group_size: 32}")
    blocks = torchqat.parse_recipe(f"version: 1\nlayers:\n  - {{match: '*.mlp.*', weight: {HALF}}}\n")
    model = torchqat.prepare(build("Llama", hidden_size=64, intermediate_size=128), blocks)
    with refused(ONNXRUNTIME_GENAI, sentence("engine.because-floating", name="model.layers.0.self_attn.q_proj")):
        ONNXRUNTIME_GENAI.check(model, checkpoint_plan(model).layers)
    for weight, found in {
        "{dtype: int4}": "a scale per channel",
        "{dtype: int4, group_size: 8}": "groups of 8",
    }.items():
        with refused(ONNXRUNTIME_GENAI, sentence("engine.because-groups", name=name, found=found)):
            checked(ONNXRUNTIME_GENAI, weight)


def test_executorch_takes_int4_in_groups_with_a_range_for_each_token():
    def planned(weight, input):
        text = f"version: 1\nlayers:\n  - {{match: blocks, weight: {weight}, input: {input}}}\n"
        model = torchqat.prepare(build("Llama", hidden_size=64, intermediate_size=128), torchqat.parse_recipe(text))
        layers = checkpoint_plan(model).layers
        return model, layers, layers[0].name

    whole, asymmetric = "{dtype: int4, group_size: 32}", "{dtype: int8, symmetric: false}"
    model, layers, name = planned(whole, asymmetric)
    EXECUTORCH.check(model, layers)
    for weight in (
        "{dtype: int3, group_size: 32}",
        "{dtype: int4}",
        HALF,
        "{dtype: int4, group_size: 32, symmetric: false}",
    ):
        model, layers, name = planned(weight, asymmetric)
        found = str(layers[0].weight)
        with refused(EXECUTORCH, sentence("engine.because-executorch-weights", name=name, found=found)):
            EXECUTORCH.check(model, layers)
    for input in ("{dtype: int8}", "float", "{dtype: int8, symmetric: false, granularity: tensor}"):
        model, layers, name = planned(whole, input)
        found = str(layers[0].input or "in floating point")
        with refused(EXECUTORCH, sentence("engine.because-executorch-inputs", name=name, found=found)):
            EXECUTORCH.check(model, layers)
