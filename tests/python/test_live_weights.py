"""``live_weights``: what an export would hold now, tensor by tensor, for an engine that runs."""

import copy

import peft
import pytest
import torch
import torchqat
import transformers
from counting import Converted
from launcher import said_by
from sentences import matches
from small_net import Net, recipe_for
from test_experts import recipe_of
from test_experts_on_disk import INT4, model_of
from test_formats import FOLDERS, GROUPS
from torch.optim.swa_utils import AveragedModel
from torchqat.checkpoints.readers.reading import read_tensors
from torchqat.model.passed_over import remember_passed_over

LEARNED = "{dtype: int4, group_size: 32, grid: full, scale: learned, scale_dtype: float16}"
WEIGHTS = {"awq": "{dtype: int4, group_size: 32, symmetric: false, scale_dtype: float16}"}


def off_the_grid(model):
    """Masters and learned scales as training leaves them: between what a checkpoint can hold."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.rand_like(parameter) * 0.2 + 0.9)
    return model


def assert_as_exported(model, folder, format="compressed-tensors", **settings):
    """Names, dtypes, shapes and bits, each once; returns them."""
    written = read_tensors(torchqat.export(model, folder, format, **settings))
    given = list(torchqat.live_weights(model, format, **settings))
    live = dict(given)
    assert live.keys() == written.keys() and len(given) == len(live)
    for name, tensor in live.items():
        assert tensor.dtype == written[name].dtype and tensor.shape == written[name].shape, name
        assert torch.equal(tensor.view(-1).view(torch.uint8), written[name].view(-1).view(torch.uint8)), name
        assert not tensor.requires_grad
    return live


def test_products_that_mlx_would_round_are_refused_at_once(tiny_llama):
    model = torchqat.prepare(tiny_llama, recipe_for(LEARNED))
    told = matches("mlx.inexact-products", name="model.layers.0.self_attn.q_proj", dtype="bfloat16")
    with pytest.raises(torchqat.UserError, match=told):
        torchqat.live_weights(model, "mlx", dtype=torch.bfloat16)


@pytest.mark.parametrize("format", FOLDERS)
def test_they_are_what_an_export_holds_bit_for_bit(format, tiny_llama, tmp_path):
    assert tiny_llama.config.tie_word_embeddings
    model = off_the_grid(torchqat.prepare(tiny_llama, recipe_for(WEIGHTS.get(format, LEARNED))))
    live = assert_as_exported(model, tmp_path / "out", format)
    assert "model.embed_tokens.weight" in live and "lm_head.weight" not in live


def test_wrappers_change_no_name(tiny_llama, tmp_path):
    model = torchqat.prepare(tiny_llama, recipe_for(LEARNED))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        spread = torch.nn.parallel.DistributedDataParallel(model)
        for place, wrapped in enumerate((spread, torch.compile(model), torch.compile(spread), AveragedModel(model))):
            assert "model.norm.weight" in assert_as_exported(wrapped, tmp_path / str(place))
    finally:
        torch.distributed.destroy_process_group()


def test_names_that_no_loader_knows_are_refused(tiny_llama, tmp_path):
    model = torchqat.prepare(tiny_llama, recipe_for(LEARNED))
    adapted = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    unmerged = matches("export.adapter-not-merged", layer=layer)
    cases = [(adapted, matches("training.adapters-beside", layer=layer))]
    cases += [(torchqat.attach_adapters(copy.deepcopy(adapted)), unmerged)]
    prompted = peft.get_peft_model(
        copy.deepcopy(model), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    cases.append((prompted, matches("export.model-of-peft", type="PeftModelForCausalLM")))
    model.model.layers[0] = torch.compile(model.model.layers[0])
    name = {"layer": "model.layers.0", "type": "OptimizedModule", "inside": "_orig_mod"}
    cases.append((model, matches("export.layer-wrapped", **name)))
    for refused, sentence in cases:
        with pytest.raises(torchqat.UserError, match=sentence):
            torchqat.export(refused, tmp_path / "out")
        with pytest.raises(torchqat.UserError, match=sentence):
            torchqat.live_weights(refused)
    model.model.layers[0] = model.model.layers[0]._orig_mod
    assert_as_exported(model, tmp_path / "out")


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32), ids=str)
def test_dtype_is_that_of_the_export(dtype, tiny_llama, tmp_path):
    recipe = recipe_for(f"{{dtype: int4, group_size: 32, scale_dtype: {str(dtype)[6:]}}}")
    live = assert_as_exported(torchqat.prepare(tiny_llama, recipe), tmp_path / "out", dtype=dtype)
    assert {tensor.dtype for tensor in live.values()} == {dtype, torch.int32, torch.int64}


@pytest.mark.parametrize("weight", ["{dtype: int8}", "{dtype: fp8_e4m3}"])
def test_calibrated_inputs_and_caches_are_among_them(weight, tiny_llama, tmp_path):
    text = (
        f"version: 1\nlayers:\n  - {{match: blocks, weight: {weight}, input: {weight[:-1]}, granularity: tensor}}}}\n"
    )
    model = torchqat.prepare(tiny_llama, torchqat.parse_recipe(text + "kv_cache: {dtype: fp8_e4m3}\n"))
    torchqat.calibrate(model, [torch.arange(32).view(2, 16)])
    live = assert_as_exported(model, tmp_path / "out")
    layer = "model.layers.1.self_attn"
    assert {f"{layer}.q_proj.input_scale", f"{layer}.k_scale", f"{layer}.v_scale"} < live.keys()


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral"])
def test_experts_are_the_layers_that_engines_read(name, tmp_path):
    live = assert_as_exported(torchqat.prepare(model_of(name), recipe_of(INT4)), tmp_path / "out")
    assert sum(".experts.3." in tensor and tensor.endswith("weight_packed") for tensor in live) == 6


def test_biases_and_what_lies_beside_the_model_are_among_them(tmp_path):
    config = transformers.Qwen2Config(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2,
        num_hidden_layers=2,
    )  # fmt: skip
    model = transformers.Qwen2ForCausalLM(config)
    model.save_pretrained(tmp_path / "source")
    extra = {"mtp.head.weight": torch.randn(4, 64)}
    tensors = {**read_tensors(tmp_path / "source"), **extra}
    torchqat._library.save_safetensors(str(tmp_path / "source" / "model.safetensors"), tensors)
    remember_passed_over(model, str(tmp_path / "source"), list(extra))
    live = assert_as_exported(torchqat.prepare(model, recipe_for(GROUPS)), tmp_path / "out")
    assert torch.equal(live["mtp.head.weight"], extra["mtp.head.weight"])
    assert "model.layers.0.self_attn.q_proj.bias" in live


def test_a_model_that_is_not_of_transformers_keeps_its_names(tmp_path):
    assert_as_exported(torchqat.prepare(Net(), recipe_for(GROUPS)), tmp_path / "out")


def test_each_call_is_of_now_and_the_model_may_train_on(tiny_llama):
    model = torchqat.prepare(tiny_llama, recipe_for(LEARNED))
    before = dict(torchqat.live_weights(model))
    kept = {name: tensor.clone() for name, tensor in before.items()}
    off_the_grid(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in kept.items())
    after = dict(torchqat.live_weights(model))
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name.rpartition(".")[2] for name in same} <= {"weight_shape"}


def test_one_layer_is_in_memory_at_a_time_and_none_before_it_is_asked_for(tiny_llama, monkeypatch):
    converted = Converted(monkeypatch)
    weights = torchqat.live_weights(torchqat.prepare(tiny_llama, recipe_for(LEARNED)))
    assert converted.most == 0
    for _ in weights:
        pass
    assert 0 < converted.most <= 2


def test_they_come_where_they_are_asked_for(tiny_llama):
    model = torchqat.prepare(tiny_llama, recipe_for(LEARNED))
    assert {tensor.device.type for _, tensor in torchqat.live_weights(model, device="meta")} == {"meta"}


# -- refusals, all before the first tensor ----------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["gguf", "onnx"])
def test_a_format_of_one_file_is_refused(format, tiny_llama):
    model = torchqat.prepare(tiny_llama, recipe_for(LEARNED))
    with pytest.raises(torchqat.UserError, match=matches("export.one-file", format=format)):
        torchqat.live_weights(model, format)


def test_what_an_export_refuses_is_refused(tiny_llama):
    model = torchqat.prepare(tiny_llama, recipe_for("{dtype: int8}", "{dtype: int8}"))
    with pytest.raises(torchqat.UserError, match=matches("export.unknown-format", format="int4")):
        torchqat.live_weights(model, "int4")
    with pytest.raises(torchqat.UserError, match=matches("export.cannot-hold", format="gptq")):
        torchqat.live_weights(model, "gptq")
    with pytest.raises(torchqat.UserError, match=matches("model.not-prepared")):
        torchqat.live_weights(torch.nn.Linear(4, 4))
    model = torchqat.prepare(Net(), recipe_for("{dtype: int4, group_size: 32, symmetric: false, scale_dtype: float16}"))
    with pytest.raises(torchqat.UserError, match=matches("export.other-dtype", format="awq", asked="torch.bfloat16")):
        torchqat.live_weights(model, "awq", dtype=torch.bfloat16)


def test_a_wider_stage_is_refused_with_its_width(tiny_llama):
    recipe = recipe_for(LEARNED, rest="schedule: [{until: 50%, weight: int8}, {until: 100%, weight: int4}]\n")
    model = torchqat.prepare(tiny_llama, recipe)
    schedule = torchqat.Schedule(model, recipe, 2)
    with pytest.raises(torchqat.UserError, match=matches("export.not-at-exported-width", dtype="int4", width="int8")):
        torchqat.live_weights(model)
    schedule.step()
    assert dict(torchqat.live_weights(model))


def test_the_last_layer_is_looked_at_before_the_first_tensor(tiny_llama):
    model = torchqat.prepare(tiny_llama, recipe_for("{dtype: int8}", "{dtype: int8, granularity: tensor}"))
    torchqat.calibrate(model, [torch.arange(32).view(2, 16)])
    layer = "model.layers.1.mlp.down_proj"
    model.get_submodule(layer)._observed = False
    with pytest.raises(torchqat.UserError, match=matches("export.input-without-range", name=layer)):
        torchqat.live_weights(model)


# -- processes --------------------------------------------------------------------------------------------------------

SPREAD = """
import sys, torch, torchqat, torch.distributed as dist
from transformers import AutoModelForCausalLM
from safetensors.torch import save_file
from torchqat.training.spread import shard
source, recipe, output = sys.argv[1:]
dist.init_process_group("gloo")
model = torchqat.prepare(AutoModelForCausalLM.from_pretrained(source), torchqat.load_recipe(recipe))
shard(model, type(model.model.layers[0]))
live = dict(torchqat.live_weights(model))
save_file(live, f"{output}/{dist.get_rank()}.safetensors")
dist.destroy_process_group()
"""


def test_of_a_spread_model_every_process_gets_all(tiny_llama, tmp_path):
    tiny_llama.save_pretrained(tmp_path / "source")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"version: 1\nlayers:\n  - {{match: blocks, weight: {LEARNED}}}\n")
    alone = dict(torchqat.live_weights(torchqat.prepare(tiny_llama, torchqat.load_recipe(str(recipe)))))
    (tmp_path / "out").mkdir()
    said_by(SPREAD, tmp_path, 2, tmp_path / "source", recipe, tmp_path / "out")
    for rank in range(2):
        live = torchqat._library.load_safetensors(str(tmp_path / "out" / f"{rank}.safetensors"))
        assert live.keys() == alone.keys()
        assert all(torch.equal(live[name], tensor) for name, tensor in alone.items())
