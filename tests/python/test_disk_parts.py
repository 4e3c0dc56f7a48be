"""Parts of tensors on disk, and tensors and layers that lie there otherwise than in the model."""

import architectures
import pytest
import torch
import torchqat
import transformers
from disk_models import RECIPE, SETTINGS, settings
from sentences import matches
from torch import nn
from torchqat.checkpoints.readers.reading import read_tensors
from torchqat.model.disk_names import DiskNames, Part
from torchqat.model.disk_sources import DiskSources
from transformers.core_model_loading import ConversionOps, Transpose, WeightConverter


def test_a_part_tells_where_it_lies():
    model = architectures.build("Mixtral", **SETTINGS["Mixtral"])
    experts = model.model.layers[1].mlp.experts
    parts = DiskNames(model).parts("model.layers.1.mlp.experts.gate_up_proj")
    name = "model.layers.1.block_sparse_moe.experts"
    whole, half = slice(None), experts.gate_up_proj.shape[1] // 2
    assert Part(f"{name}.2.w1.weight", (2, slice(0, half), whole)) in parts
    assert Part(f"{name}.2.w3.weight", (2, slice(half, 2 * half), whole)) in parts
    assert len(parts) == 8
    scales = experts.gate_up_proj[:, :, ::16]
    assert torch.equal(parts[-1].cut(scales), scales[3, half:])
    assert DiskNames(model).parts("model.layers.1.mlp.experts.down_proj")[3] == Part(
        f"{name}.3.w2.weight", (3, whole, whole)
    )


def test_a_module_that_is_not_of_transformers_has_its_own_names():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    names = DiskNames(net)
    assert dict(names.on_disk(net.state_dict().items())).keys() == net.state_dict().keys()
    assert (names.layer("0"), names.renamed("0.k_scale")) == ("0", "0.k_scale")
    assert DiskSources(net, net.state_dict()).unexpected == []


def converted(converter):
    """A Llama that transformers would hold otherwise than its files do."""
    model = architectures.build("Llama")
    model._weight_conversions = [converter]
    return model


def test_a_transposed_tensor_is_a_part():
    model = converted(WeightConverter("self_attn.q_t", "self_attn.q_proj.weight", [Transpose(0, 1)]))
    name = "model.layers.0.self_attn.q_proj.weight"
    (part,) = DiskNames(model).parts(name)
    assert part == Part("model.layers.0.self_attn.q_t", (slice(None), slice(None)), transposed=True)
    weight = model.get_parameter(name)
    assert torch.equal(part.cut(weight), weight.t())


class Halved(ConversionOps):
    """Rows of the two halves take turns, which no cut tells."""

    def __init__(self, turns=False):
        self.turns = turns

    def convert(self, input_dict, source_patterns, target_patterns, **kwargs):
        (found,) = input_dict.values()
        tensor = found[0] if isinstance(found, list) else found
        shape = (tensor.shape[0] // 2, 2, -1) if self.turns else (2, tensor.shape[0] // 2, -1)
        return {target_patterns[0]: tensor.reshape(shape).transpose(0, 1).reshape(tensor.shape).contiguous()}

    @property
    def reverse_op(self):
        return Halved(not self.turns)


@pytest.mark.parametrize("operation", [Transpose(0, 1), Halved()])
def test_a_layer_that_lies_in_another_order_is_refused(operation, tmp_path):
    model = converted(WeightConverter("q_proj.weight", "q_proj.weight", [operation]))
    (found,) = DiskNames(model).on_disk([("model.layers.0.self_attn.q_proj.weight", torch.arange(4096.0).view(64, 64))])
    there = operation.reverse_op.convert({"": torch.arange(4096.0).view(64, 64)}, [""], ["weight"])["weight"]
    assert found[0] == "model.layers.0.self_attn.q_proj.weight" and torch.equal(found[1], there)
    torchqat.prepare(model, settings("Llama", method="mse"))
    torchqat.calibrate(model, [])
    with pytest.raises(
        torchqat.UserError, match=matches("checkpoints.other-order", name="model.layers.0.self_attn.q_proj")
    ):
        torchqat.export(model, tmp_path / "out")


def test_layers_that_are_one_on_disk_keep_their_names_where_they_are_quantized(tmp_path):
    torch.manual_seed(0)
    shape = {name: value for name, value in architectures._SHAPE.items() if name != "head_dim"}
    model = transformers.HrmTextForCausalLM(transformers.HrmTextConfig(**shape)).eval()
    text = RECIPE.format(blocks="model.H_module.layers.0.self_attn", method="mse").replace("attn.*", "attn.?_proj")
    torchqat.prepare(model, torchqat.parse_recipe(text, "recipe"))
    torchqat.calibrate(model, [])
    with pytest.raises(torchqat.UserError, match=matches("export.unreadable-by-transformers")):
        torchqat.export(model, tmp_path / "refused")
    out = torchqat.export(model, tmp_path / "out", format="safetensors")
    stored = read_tensors(out).keys()
    first = "model.H_module.layers.0"
    assert {f"{first}.self_attn.q_proj.codes", f"{first}.self_attn.gate_proj.weight"} <= stored
    assert f"{first}.mlp.gate_up_proj.weight" in stored and f"{first}.mlp.up_proj.weight" not in stored
    assert torchqat.verify(out, model, engine="reader").ok
