"""``verify --reference``: checkpoints that others' libraries wrote, beside the float model they were made of.

Each is written by the library of its format; what it decodes to is worked out by that library or from the codes it wrote.
"""

import json

import gguf
import numpy as np
import pytest
import torch
import torchqat
from command import call
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from gguf_models import build
from safetensors.torch import save_file
from sentences import matches, said
from torchqat.checkpoints.formats.gguf import write_gguf
from torchqat.model.loading import load_model, load_tokenizer
from torchqat.runs.foreign import compare, with_weights


@pytest.fixture
def layers(tiny_llama):
    """Names and weights of the linear layers in the blocks."""
    return {
        n: m.weight.detach()
        for n, m in tiny_llama.model.layers.named_modules(prefix="model.layers")
        if hasattr(m, "bias")
    }


def relative(found, wanted):
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def foreign(folder, model_folder, tiny_llama, replaced, quantization):
    """A folder with the float model's files, in which the tensors of layers are ``replaced``."""
    folder.mkdir()
    config = json.loads((model_folder / "config.json").read_text())
    if quantization is not None:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))
    gone = {f"{name.rpartition('.')[0]}.weight" for name in replaced}
    state = {n: t.clone() for n, t in tiny_llama.state_dict().items() if n not in gone}
    if tiny_llama.config.tie_word_embeddings:
        state.pop("lm_head.weight")
    save_file({**state, **replaced}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def rounded(weight, bits, group, symmetric=True):
    """Codes from 0, scales ``[out, groups]`` and zero points, of plain rounding."""
    parts = weight.unflatten(1, (-1, group))
    levels = (1 << bits) - 1
    if symmetric:
        scale, zero = parts.abs().amax(-1) / (1 << (bits - 1)), torch.full(parts.shape[:2], 1 << (bits - 1))
    else:
        low, high = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0)
        scale = (high - low) / levels
        zero = (-low / scale).round()
    scale = scale.half().float()
    codes = ((parts / scale[..., None]).round() + zero[..., None]).clamp(0, levels)
    dense = ((codes - zero[..., None]) * scale[..., None]).flatten(1)
    return codes.flatten(1).long(), scale, zero.long(), dense


def packed(fields, bits):
    """Fields ``[words * 32 // bits, columns]``, the first in the lowest bits, as int32 ``[words, columns]``."""
    places = torch.arange(32 // bits)[None, :, None] * bits
    words = (fields.unflatten(0, (-1, 32 // bits)) << places).sum(1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def test_llm_compressor(tmp_path, model_folder, tiny_llama, layers):
    """Packed by the compressed-tensors library."""
    arguments = QuantizationArgs(num_bits=4, group_size=32, strategy="group", symmetric=False)
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    config = QuantizationConfig(
        config_groups={"group_0": scheme}, ignore=["lm_head"], format="pack-quantized", quantization_status="compressed"
    )
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    replaced, wanted = {}, {}
    for name, weight in layers.items():
        _, scale, zero, _ = rounded(weight, 4, 32, symmetric=False)
        given = {"weight": weight.clone(), "weight_scale": scale, "weight_zero_point": (zero - 8).to(torch.int8)}
        made = compressor.compress(dict(given), scheme)
        replaced |= {f"{name}.{leaf}": tensor.contiguous() for leaf, tensor in made.items()}
        wanted[name] = relative(compressor.decompress(dict(made), scheme)["weight"], weight)
    quantization = {**json.loads(config.model_dump_json()), "quant_method": "compressed-tensors"}
    folder = foreign(tmp_path / "foreign", model_folder, tiny_llama, replaced, quantization)
    found = compare(folder, str(model_folder)).weights
    assert found.format == "compressed-tensors" and found.ok and not found.changed
    assert {layer.name: layer.relative for layer in found.layers} == pytest.approx(wanted, rel=1e-5)
    assert [layer.name for layer in found.layers] == list(layers)
    name, weight = next(iter(layers.items()))  # as older ones wrote, with columns in an order of their own
    replaced[f"{name}.weight_g_idx"] = torch.randperm(weight.shape[1]).int() // 32
    folder = foreign(tmp_path / "ordered", model_folder, tiny_llama, replaced, quantization)
    with pytest.raises(torchqat.UserError, match=matches("verify.ordered-columns", layer=name)):
        compare(folder, str(model_folder))


@pytest.mark.parametrize("config_file", ("config.json", "quantize_config.json"))
@pytest.mark.parametrize("bits", (4, 8))
def test_auto_gptq(bits, config_file, tmp_path, model_folder, tiny_llama, layers):
    """Its words as its ``pack`` lays them: codes down the rows, zero points less one, groups by ``g_idx`` as they come."""
    replaced, wanted = {}, {}
    for name, weight in layers.items():
        order = torch.randperm(weight.shape[1])
        codes, scale, zero, dense = rounded(weight[:, order], bits, 32, symmetric=False)
        back = order.argsort()
        wanted[name] = relative(dense[:, back].half(), weight)  # which its readers compute in
        replaced |= {
            f"{name}.qweight": packed(codes[:, back].t(), bits),
            f"{name}.qzeros": packed((zero - 1) % (1 << bits), bits).t().contiguous(),
            f"{name}.scales": scale.t().contiguous().half(),
            f"{name}.g_idx": (torch.arange(weight.shape[1]) // 32)[back].int(),
        }
    quantization = {"quant_method": "gptq", "bits": bits, "group_size": 32, "desc_act": True, "sym": False}
    folder = foreign(
        tmp_path / "foreign", model_folder, tiny_llama, replaced, quantization if config_file == "config.json" else None
    )
    if config_file != "config.json":
        (folder / config_file).write_text(json.dumps({k: v for k, v in quantization.items() if k != "quant_method"}))
    found = compare(folder, str(model_folder)).weights
    assert found.format == "gptq" and found.ok
    assert {layer.name: layer.relative for layer in found.layers} == pytest.approx(wanted, rel=1e-4)


def test_auto_awq(tmp_path, model_folder, tiny_llama, layers):
    """Nibbles in its order; a scale that was folded into a norm is said, and undone by nobody but the model that runs."""
    columns = [0, 2, 4, 6, 1, 3, 5, 7]  # of eight, nibble by nibble
    with torch.no_grad():
        folded = torch.rand(64) + 0.5
        for layer in tiny_llama.model.layers:
            layer.input_layernorm.weight.copy_(layer.input_layernorm.weight / folded)

    def across(fields):
        return packed(fields.unflatten(1, (-1, 8))[..., columns].flatten(1).t().contiguous(), 4).t().contiguous()

    replaced, wanted = {}, {}
    for name, weight in layers.items():
        before = weight * folded if name.rpartition(".")[2] in ("q_proj", "k_proj", "v_proj") else weight
        codes, scale, zero, dense = rounded(before, 4, 32, symmetric=False)
        wanted[name] = relative(dense, weight)
        replaced |= {
            f"{name}.qweight": across(codes.t()),
            f"{name}.qzeros": across(zero.t()),
            f"{name}.scales": scale.t().contiguous().half(),
        }
    quantization = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
    folder = foreign(tmp_path / "foreign", model_folder, tiny_llama, replaced, quantization)
    found = compare(folder, str(model_folder)).weights
    assert (
        found.format == "awq"
        and found.ok
        and {layer.name: layer.relative for layer in found.layers} == pytest.approx(wanted, rel=1e-4)
    )
    assert len(found.changed) == 2 and said(" ".join(found.notes), "verify.folded", count=2)


def test_modelopt(tmp_path, model_folder, tiny_llama, layers):
    """W4A16_AWQ as its documents lay it out, with scales of the input, and what older versions call their configuration."""
    replaced, wanted = {}, {}
    for name, weight in layers.items():
        scale_of_input = (torch.rand(weight.shape[1]) + 0.5).half().float()
        codes, scale, _, dense = rounded(weight / scale_of_input, 4, 32)
        nibbles = (codes - 8) % 16
        wanted[name] = relative(dense * scale_of_input, weight)
        replaced |= {
            f"{name}.weight": (nibbles[0::2] | nibbles[1::2] << 4).to(torch.uint8),
            f"{name}.weight_scale": scale,
            f"{name}.pre_quant_scale": scale_of_input,
        }
    folder = foreign(tmp_path / "foreign", model_folder, tiny_llama, replaced, None)
    quantization = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "W4A16_AWQ", "group_size": 32}}
    (folder / "hf_quant_config.json").write_text(json.dumps(quantization))
    found = compare(folder, str(model_folder)).weights
    assert found.format == "modelopt" and found.ok
    assert {layer.name: layer.relative for layer in found.layers} == pytest.approx(wanted, rel=1e-4)


@pytest.fixture
def requantized(tmp_path, model_folder):
    """A GGUF file of the float model, its matrices as llama-quantize has them: in blocks, the head and norms apart."""
    source = tmp_path / "float.gguf"
    write_gguf(load_model(str(model_folder)), [], None, source, load_tokenizer(str(model_folder)))

    def make(kind, place=tmp_path / "foreign.gguf"):
        reader = gguf.GGUFReader(source)
        writer = gguf.GGUFWriter(place, str(reader.get_field("general.architecture").contents()))
        for field in reader.fields.values():
            if field.name.startswith("GGUF.") or field.name == "general.architecture":
                continue
            of_items = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], of_items)
        wanted = {}
        for tensor in reader.tensors:
            if len(tensor.shape) < 2 or tensor.name.startswith(("token_embd", "output")):
                writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
                continue
            values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            blocks = gguf.quants.quantize(values, kind)
            writer.add_tensor(tensor.name, blocks, raw_dtype=kind)
            wanted[tensor.name] = relative(torch.from_numpy(gguf.dequantize(blocks, kind)), torch.from_numpy(values))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return place, wanted

    return make


@pytest.mark.parametrize("kind", ("Q4_0", "Q8_0", "Q5_1"))
def test_gguf(kind, requantized, model_folder):
    """Blocks by the gguf package, of the float model in half precision."""
    place, wanted = requantized(gguf.GGMLQuantizationType[kind])
    found = compare(place, str(model_folder)).weights
    assert found.format == "gguf" and found.ok and len(found.layers) == len(wanted) == 14 and not found.changed
    by_norm = sorted(layer.relative for layer in found.layers)
    assert by_norm == pytest.approx(sorted(wanted.values()), rel=0.05, abs=5e-4)  # the file's source was in float16


def test_the_command(requantized, model_folder, held_out_folder, capsys):
    """Layers, figures that are those of a model with these weights, and what this is a comparison with."""
    place, _ = requantized(gguf.GGMLQuantizationType.Q4_0)
    options = [place, "--reference", model_folder, "--data", held_out_folder, "--device", "cpu"]
    code, out, err = call(capsys, "verify", *options)
    assert code == 0, err
    assert said(out, "verify.beside-float", folder=place, format="gguf", layers=14, reference=model_folder)
    assert "self_attn.q_proj" in out and "model.layers.*.input_layernorm.weight (2)" in out
    code, out, err = call(capsys, "--json", "verify", *options)
    found = json.loads(out)
    assert code == 0 and found["ok"] and len(found["layers"]) == 14 and found["kl"] > 1e-6
    code, out, err = call(capsys, "--json", "evaluate", model_folder, "--data", held_out_folder)
    assert found["float_perplexity"] == pytest.approx(json.loads(out)["perplexity"], rel=1e-5)


def test_figures_are_those_of_the_weights(tiny_llama, layers):
    """The head is tied to the embedding in the float model; a checkpoint may hold both, and differently."""
    changed = {f"{name}.weight": weight * 2 for name, weight in layers.items()}
    embedding = tiny_llama.model.embed_tokens.weight
    both = {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding + 1}
    made = with_weights(tiny_llama, {**changed, **both})
    assert torch.equal(made.model.layers[0].mlp.up_proj.weight, tiny_llama.model.layers[0].mlp.up_proj.weight * 2)
    assert torch.equal(made.model.embed_tokens.weight, tiny_llama.model.embed_tokens.weight)
    assert torch.equal(made.lm_head.weight, tiny_llama.lm_head.weight + 1)


def test_what_is_not_the_models_is_said(tmp_path, requantized, model_folder, tiny_llama, layers, capsys):
    name, weight = next(iter(layers.items()))
    codes, scale, _, _ = rounded(weight, 4, 32)
    given = {f"{name}.weight": codes, f"{name}.stray": scale}
    folder = foreign(tmp_path / "foreign", model_folder, tiny_llama, given, {"quant_method": "unheard-of"})
    code, _, err = call(capsys, "verify", folder, "--reference", model_folder)
    assert code == 2 and "unheard-of" in err
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq"}
    (folder / "config.json").write_text(json.dumps(config))
    code, out, _ = call(capsys, "verify", folder, "--reference", model_folder)
    assert (
        code == 1
        and "Not the model's: model.layers.*.self_attn.q_proj.stray" in out
        and "Nothing in it is quantized" in out
    )
    requantized(gguf.GGMLQuantizationType.Q8_0, tmp_path / "other.gguf")
    code, _, err = call(capsys, "verify", tmp_path, "--reference", model_folder)
    assert code == 2 and said(err, "verify.several-gguf", folder=tmp_path), err
    for options in (["--reference", model_folder, "--bench"], ["--data", tmp_path]):
        assert call(capsys, "verify", folder, *options)[0] == 2
    assert call(capsys, "verify", tmp_path / "nowhere", "--reference", model_folder)[0] == 2


def test_weights_that_the_model_has_turned_round(tmp_path, capsys):
    """GPT-2's layers are ``[in, out]``, square ones as well; a GGUF file has rows."""
    model = build("gpt2")
    model.save_pretrained(tmp_path / "float")
    rule = "version: 1\nlayers:\n  - {match: 'transformer.h.*', weight: {dtype: q8_0}}\n"
    folder = torchqat.export(
        torchqat.prepare(model, torchqat.parse_recipe(rule, "r.yaml")).eval(), tmp_path / "out", "gguf"
    )
    found = compare(folder, str(tmp_path / "float")).weights
    assert found.ok and len(found.layers) == 12 and max(layer.relative for layer in found.layers) < 0.01


def test_samples_of_no_data_are_refused(model_folder, capsys):
    code, _, err = call(capsys, "verify", model_folder, "--reference", model_folder, "--samples", 2)
    assert code == 2 and said(err, "verify.samples-of-no-data", samples=2)
