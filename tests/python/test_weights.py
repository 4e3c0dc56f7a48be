"""Every weight of a model is planned, or named with the reason: nothing stays in floating point by oversight."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchqat
import transformers
from sentences import matches
from torch import nn
from torch.nn.utils import parametrizations
from torchqat.checkpoints.readers.reading import read_tensors
from torchqat.layers.linear import QuantLinear
from torchqat.layers.packed_linear import PackedLinear
from torchqat.layers.prepared import quant_layers
from torchqat.model.multiplied import multiplied_parameters

SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
INT8 = "{dtype: int8, granularity: channel}"


def recipe_of(match, weight=INT8, rest=""):
    return torchqat.parse_recipe(f'version: 1\nlayers:\n  - match: "{match}"\n    weight: {weight}\n{rest}')


def reasons(plan):
    return {left.name: left.why for left in plan.left}


# -- a forward of one's own ------------------------------------------------------------------------------------------


class Doubled(nn.Linear):
    def forward(self, x):
        return 2.0 * super().forward(x)


class Spelled(nn.Linear):
    """As Falcon's: other words for the same."""

    def forward(self, x):
        y = x @ self.weight.T
        return y if self.bias is None else y + self.bias


class Positions(nn.Embedding):
    """As OPT's: it takes a mask."""

    def forward(self, mask):
        return super().forward(mask.cumsum(-1))


def test_a_subclass_with_a_forward_of_its_own_is_named_and_not_replaced():
    model = nn.Sequential(nn.Linear(8, 8), Doubled(8, 8))
    assert reasons(torchqat.make_plan(model, recipe_of("type:Linear"))) == {"1": "Doubled has a forward of its own"}
    with pytest.raises(torchqat.RecipeError, match=matches("plan.uncovered", match="*", weights="1", share="50.0 %")):
        torchqat.make_plan(model, recipe_of("*"))
    prepared = torchqat.prepare(copy.deepcopy(model), recipe_of("type:Linear"))
    assert type(prepared[1]) is Doubled


@pytest.mark.parametrize("bias", [True, False])
def test_a_subclass_that_computes_the_same_is_found_by_trying(bias):
    model = nn.Sequential(Spelled(8, 6, bias=bias))
    state = torch.get_rng_state()
    prepared = torchqat.prepare(copy.deepcopy(model), recipe_of("*"))
    assert isinstance(prepared[0], QuantLinear) and torch.equal(torch.get_rng_state(), state)
    x = torch.randn(3, 8)
    torch.testing.assert_close(prepared(x), F.linear(x, prepared[0].quantized_weight(), model[0].bias))


@pytest.mark.parametrize("kind", ["Gemma", "Gemma2", "Gemma3Text"])
def test_scaled_embeddings_are_refused_by_name(kind):
    config = getattr(transformers, f"{kind}Config")(
        **SIZES, num_key_value_heads=2, head_dim=16, tie_word_embeddings=False
    )
    model = getattr(transformers, f"{kind.removesuffix('Text')}ForCausalLM")(config)
    with pytest.raises(torchqat.RecipeError, match=matches("plan.uncovered", weights="model.embed_tokens")) as told:
        torchqat.make_plan(model, recipe_of("model.embed_tokens"))
    assert "has a forward of its own" in str(told.value)


def test_positions_with_other_arguments_are_left():
    model = nn.ModuleDict({"positions": Positions(16, 8), "linear": nn.Linear(8, 8)})
    found = reasons(torchqat.make_plan(model, recipe_of("linear")))
    assert found == {"positions": "embedding; Positions has a forward of its own"}


def test_a_forward_on_the_instance_is_one_of_its_own():
    model = nn.Sequential(nn.Linear(8, 8))
    own = model[0].forward
    model[0].forward = lambda x: own(x)
    with pytest.raises(torchqat.RecipeError, match=matches("plan.uncovered", weights="0")) as told:
        torchqat.make_plan(model, recipe_of("*"))
    assert "its forward has been replaced by another" in str(told.value)


def test_weights_that_are_computed_are_refused():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 8)))
    with pytest.raises(torchqat.RecipeError, match=matches("plan.uncovered", weights="0")) as told:
        torchqat.make_plan(model, recipe_of("*"))
    assert "its weight is computed anew in every call" in str(told.value)


# -- modules and weights that are there twice ------------------------------------------------------------------------


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b = self.a

    def forward(self, x):
        return self.b(self.a(x).relu())


@pytest.mark.parametrize("match", ["a", "b"])
def test_a_module_with_two_names_is_replaced_under_both(match, tmp_path):
    model = torchqat.prepare(Twice(), recipe_of(match, "{dtype: int4, scale: mse}"))
    assert isinstance(model.a, QuantLinear) and model.b is model.a and len(quant_layers(model)) == 1
    folder = torchqat.export(model, tmp_path / "out", "safetensors")
    assert torchqat.verify(folder, model).ok
    assert set(read_tensors(folder)) == {"a.codes", "a.scale", "a.bias"}
    x = torch.randn(4, 8)
    wanted = model(x)
    torch.testing.assert_close(torchqat.load(Twice(), folder)(x), wanted, rtol=0, atol=1e-6)
    for packed in (torchqat.load(Twice(), folder, packed=True), torchqat.pack(model)):
        assert isinstance(packed.a, PackedLinear) and packed.b is packed.a
        torch.testing.assert_close(packed(x), wanted, rtol=1e-5, atol=1e-5)


class Shared(nn.Module):
    """As Zamba: layers of their own on one weight."""

    def __init__(self, bias=False):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8, bias=bias), nn.Linear(8, 8, bias=bias)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x).relu())


def test_layers_that_share_a_weight_become_one(tmp_path):
    model = torchqat.prepare(Shared(), recipe_of("*", "{dtype: int4, scale: learned}"))
    assert model.first is model.second
    assert [name for name, _ in model.named_parameters()] == ["first.weight", "first.weight_scale"]
    folder = torchqat.export(model, tmp_path / "out", "safetensors")
    assert torchqat.verify(folder, model).ok and set(read_tensors(folder)) == {"first.codes", "first.scale"}
    x = torch.randn(4, 8)
    torch.testing.assert_close(torchqat.load(Shared(), folder)(x), model(x), rtol=0, atol=1e-6)


def test_layers_that_share_a_weight_are_quantized_alike_or_not():
    with pytest.raises(
        torchqat.UserError, match=matches("model.tied-layers", layers="first and second", left="second")
    ):
        torchqat.prepare(Shared(), recipe_of("first"))
    with pytest.raises(torchqat.UserError, match=matches("model.shared-by-unlike", layers="first and second")):
        torchqat.prepare(Shared(bias=True), recipe_of("*"))


# -- what only a full name reaches -----------------------------------------------------------------------------------


def test_heads_of_tasks_are_reached_by_their_name_alone():
    config = transformers.BertConfig(**SIZES, num_labels=3)
    model = transformers.BertForSequenceClassification(config)
    plan = torchqat.make_plan(model, recipe_of("type:Linear"))
    assert reasons(plan)["classifier"] == "head of the task"
    assert any(layer.name == "bert.pooler.dense" for layer in plan.layers)
    assert [layer.name for layer in torchqat.make_plan(model, recipe_of("classifier")).layers] == ["classifier"]


def test_routers_and_gates_of_shared_experts_are_reached_by_their_name_alone():
    config = transformers.Qwen2MoeConfig(
        **SIZES, num_key_value_heads=2, moe_intermediate_size=32, shared_expert_intermediate_size=64, num_experts=4,
        num_experts_per_tok=2,
    )  # fmt: skip
    model = transformers.Qwen2MoeForCausalLM(config)
    plan = torchqat.make_plan(model, recipe_of("*"))
    names = {layer.name for layer in plan.layers}
    assert "model.layers.0.mlp.shared_expert.gate_proj" in names and "model.layers.0.mlp.experts.down_proj" in names
    for name in ("model.layers.0.mlp.shared_expert_gate", "model.layers.0.mlp.gate.weight"):
        assert reasons(plan)[name].startswith("router") and name not in names
    named = torchqat.make_plan(model, recipe_of("model.layers.1.mlp.shared_expert_gate"))
    assert [layer.name for layer in named.layers] == ["model.layers.1.mlp.shared_expert_gate"]


class Mixture(nn.Module):
    """Experts that are modules, beside a gate of two layers."""

    def __init__(self):
        super().__init__()
        self.router = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.out = nn.Linear(8, 8)


def test_all_of_a_router_is_left():
    plan = torchqat.make_plan(nn.Sequential(Mixture()), recipe_of("*"))
    assert [layer.name for layer in plan.layers] == [*(f"0.experts.{i}" for i in range(3)), "0.out"]
    assert reasons(plan) == {"0.router.0": "router", "0.router.1": "router"}


# -- parameters that are no layer's ----------------------------------------------------------------------------------


class Raw(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix, self.vector = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(1, 8))
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return self.linear(x @ self.matrix) * self.vector


def test_a_matrix_that_no_layer_holds_is_an_error_unless_it_is_left():
    model = nn.Sequential(Raw())
    told = {"match": "*", "weights": "0.matrix", "share": "50.0 %"}
    with pytest.raises(torchqat.RecipeError, match=matches("plan.uncovered", **told)):
        torchqat.make_plan(model, recipe_of("*"))
    why = "a parameter of Raw, which is no layer that torchqat knows"
    allowed = torchqat.make_plan(model, recipe_of("*", rest="    allow_float: true\n"))
    assert reasons(allowed) == {"0.matrix": why}
    left = torchqat.make_plan(model, recipe_of("*", rest='  - {match: "*.matrix", weight: float}\n'))
    assert reasons(left) == {"0.matrix": "by a rule"}
    assert (left.quantized, left.multiplied, left.parameters) == (64, 128, 64 + 8 + 64 + 8)


def test_matrices_that_are_not_multiplied_are_named_and_no_error():
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 96}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, image_size=32, patch_size=8))
    plan = torchqat.make_plan(model, recipe_of("*"))
    name = "vit.embeddings.position_embeddings"
    assert reasons(plan)[name] == "a parameter of ViTEmbeddings, which is no layer that torchqat knows"
    assert [left.multiplied for left in plan.left if left.name == name] == [False]


def test_products_are_followed_from_parameters():
    """Mamba multiplies ``A_log`` element by element, after functions of it alone; its convolution is a product."""
    model = transformers.MambaForCausalLM(transformers.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1))
    found = multiplied_parameters(model)
    mixer = model.backbone.layers[0].mixer
    assert {id(mixer.in_proj.weight), id(mixer.conv1d.weight), id(mixer.dt_proj.weight)} <= found
    assert id(mixer.A_log) not in found and id(mixer.D) not in found


def test_where_no_forward_can_be_tried_a_matrix_counts_as_multiplied():
    assert multiplied_parameters(nn.Sequential(Raw())) is None
    model = transformers.MambaForCausalLM(transformers.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1))
    model.forward = lambda *_, **__: (_ for _ in ()).throw(TypeError("other arguments"))
    assert multiplied_parameters(model) is None


def test_trying_leaves_modules_with_two_names_as_they_are():
    config = transformers.LlamaConfig(**SIZES)
    model = transformers.LlamaForCausalLM(config)
    model.model.layers[1].mlp = model.model.layers[0].mlp
    model.model.raw = nn.Parameter(torch.randn(8, 8))
    before = copy.deepcopy(model.state_dict())
    torchqat.make_plan(model, recipe_of("blocks"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.model.layers[1].mlp is model.model.layers[0].mlp


def test_hooks_of_a_layer_go_on_where_it_is_replaced():
    model = nn.Sequential(nn.Linear(8, 8))
    handle = model[0].register_forward_hook(lambda module, given, output: 2 * output)
    x = torch.randn(2, 8)
    torchqat.prepare(model, recipe_of("*"))
    doubled = model(x)
    handle.remove()
    torch.testing.assert_close(doubled, 2 * model(x))


def test_blocks_are_named_by_a_word():
    config = transformers.GPTJConfig(vocab_size=128, n_embd=64, n_layer=2, n_head=4, rotary_dim=8)
    plan = torchqat.make_plan(transformers.GPTJForCausalLM(config), recipe_of("blocks"))
    assert len(plan.layers) == 12 and all(layer.name.startswith("transformer.h.") for layer in plan.layers)


def test_shares_are_those_of_all_parameters():
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 24))
    plan = torchqat.make_plan(model, recipe_of("0"))
    assert (plan.parameters, plan.quantized, plan.multiplied) == (72 + 16 + 24 * 9, 64, 64 + 192)
    assert reasons(plan) == {"2": "no rule reaches it"}
