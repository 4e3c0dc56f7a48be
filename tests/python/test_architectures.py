"""Every type of model that transformers has, tiny, through all that torchqat does: docs/models.md is what this finds."""

import json

import model_table
import pytest
import torch
import torch.nn.functional as F
import torchqat
import transformers
from model_zoo import examine as examining
from model_zoo import reload
from model_zoo.models import Entry, build, entries
from model_zoo.recipes import planned, without
from model_zoo.shrink import shrunk
from model_zoo.watch import Watch
from torch import nn
from torchqat.model import prepare

# One of each kind; the night has all.
QUICK = {
    "llama", "gpt2", "qwen3_moe", "mixtral", "gpt_oss", "mamba", "gemma3_text", "t5, text to text", "qwen3, vectors",
    "whisper, speech to text", "bert, text classes", "deberta-v2, text classes", "llava, image and text",
    "vit, image classes",
}  # fmt: skip


def expected_faults() -> dict[str, set[str]]:
    lines = model_table.FAULTS.read_text(encoding="utf-8").splitlines()
    return {
        name: set(cells.split()) for line in lines if not line.startswith("#") for name, cells in [line.rsplit(": ", 1)]
    }


def pytest_generate_tests(metafunc):
    if "entry" in metafunc.fixturenames:
        nightly = metafunc.config.getoption("--nightly")
        metafunc.parametrize("entry", [e for e in entries() if nightly or str(e) in QUICK], ids=str)


def test_a_model_has_no_fault_but_those_that_are_known(entry):
    result = examining.examine(entry)
    expected = expected_faults().get(str(entry), set())
    assert not result.built or "built" in expected, f"{entry} cannot be built or run: {result.built}"
    found = {"built"} if result.built else {k for k, cell in result.cells.items() if cell.state == examining.FAULT}
    new = {cell: result.cells[cell].text for cell in found - expected if cell != "built"}
    assert not new, f"{entry} has new faults: {new}"
    assert found == expected, (
        f"{entry} has these faults no more, take them off {model_table.FAULTS.name}: {expected - found}"
    )


def test_every_type_has_a_row():
    known = {model["name"] for model in _results()["models"]}
    missing = [str(entry) for entry in entries() if str(entry) not in known]
    assert not missing, f"docs/models.md lacks {', '.join(missing)}: make models"
    assert known >= QUICK


def test_the_page_is_made_of_the_results():
    assert model_table.PAGE.read_text(encoding="utf-8") == model_table.page(_results())


def test_what_is_expected_to_be_a_fault_is_one_on_the_page():
    """One that is mended comes off the list at once, off the page with the next sweep."""
    of_page = dict(line.rsplit(": ", 1) for line in model_table.faults(_results()).splitlines())
    more = {name: cells - set(of_page.get(name, "").split()) for name, cells in expected_faults().items()}
    more = {name: cells for name, cells in more.items() if cells}
    assert not more, f"the page has no such faults: {more}"


def _results() -> dict:
    return json.loads(model_table.RESULTS.read_text(encoding="utf-8"))


# -- what the examination is worth: faults that are planted are found -------------------------------------------------


class _Bypassed(transformers.models.llama.modeling_llama.LlamaMLP):
    """Reads the weight of a layer that it does not call."""

    def forward(self, x):
        return F.linear(self.act_fn(self.gate_proj(x)) * self.up_proj(x), self.down_proj.weight)


class _Scaled(nn.Linear):
    """Computes otherwise than the class that it is derived from."""

    def forward(self, x):
        return 2 * super().forward(x)


def _planted(monkeypatch, plant) -> examining.Result:
    model = build(Entry("llama"))
    plant(model.model.layers[0].mlp)
    monkeypatch.setattr(examining, "build", lambda entry: model)
    return examining.examine(Entry("llama"))


def test_a_weight_that_others_read_is_found(monkeypatch):
    """Also if torchqat did not see to it itself."""
    monkeypatch.setattr("torchqat.ptq.calibrate.check_called", lambda *_: [])
    cell = _planted(monkeypatch, lambda mlp: setattr(mlp, "__class__", _Bypassed)).cells["called"]
    assert cell.state == examining.FAULT and "unrounded in evaluation mode: model.layers.0.mlp.down_proj" in cell.text


def test_a_subclass_that_computes_otherwise_is_found_or_left_alone(monkeypatch):
    result = _planted(monkeypatch, lambda mlp: setattr(mlp.down_proj, "__class__", _Scaled))
    faults = [cell.text for cell in result.cells.values() if cell.state == examining.FAULT]
    assert any("computes otherwise" in text for text in faults) or result.shares["multiplied"] < 1


def test_a_parameter_that_no_layer_holds_is_found(monkeypatch):
    """Also if torchqat did not name it."""
    own = prepare.plannable_layers
    monkeypatch.setattr(prepare, "plannable_layers", lambda model: [layer for layer in own(model) if layer.plannable])

    class Gated(transformers.models.llama.modeling_llama.LlamaMLP):
        def forward(self, x):
            return super().forward(x @ self.mix)

    def plant(mlp):
        mlp.mix = nn.Parameter(torch.randn(64, 64) / 8)
        mlp.__class__ = Gated

    cell = _planted(monkeypatch, plant).cells["covered"]
    assert cell.state == examining.FAULT and "model.layers.0.mlp.mix" in cell.text


@pytest.mark.parametrize("change", ["flipped", "lost"])
def test_an_export_that_is_read_otherwise_is_found(monkeypatch, change):
    loaded = reload.by_transformers

    def damaged(folder, model, batch):
        model = loaded(folder, model, batch)
        if change == "flipped":
            weight = model.model.layers[1].self_attn.o_proj.weight.data
            weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(9.0))
        else:
            del model.model.layers[1].self_attn.o_proj.weight
        return model

    monkeypatch.setattr(reload, "by_transformers", damaged)
    cell = examining.examine(Entry("llama")).cells["transformers"]
    assert cell.state == examining.FAULT and "differ: model.layers.1.self_attn.o_proj.weight" in cell.text


def test_an_exception_is_a_fault_with_its_place(monkeypatch):
    def broken(*_):
        raise KeyError("nowhere")

    monkeypatch.setattr(torchqat, "calibrate", broken)
    cell = examining.examine(Entry("llama")).cells["calibrated"]
    assert cell.state == examining.FAULT and cell.text.startswith("KeyError: 'nowhere' (")


def test_a_sentence_is_no_fault(monkeypatch):
    def refusing(*_):
        raise torchqat.UserError("The model must be another, but is this one.")

    monkeypatch.setattr(torchqat, "prepare", refusing)
    cell = examining.examine(Entry("llama")).cells["called"]
    assert (cell.state, cell.text) == (examining.NO, "The model must be another, but is this one.")


def test_a_layer_that_torchqat_refuses_by_name_is_left_out(monkeypatch):
    calibrate, name = torchqat.calibrate, "model.layers.1.mlp.down_proj"

    def refusing(model, *rest):
        if getattr(model.get_submodule(name), "weight_spec", None):
            raise torchqat.UserError(f"LlamaMLP must call {name} for it to be quantized, but does not.")
        return calibrate(model, *rest)

    monkeypatch.setattr(torchqat, "calibrate", refusing)
    result = examining.examine(Entry("llama"))
    assert result.cells["calibrated"].state == examining.PARTLY and name in result.cells["calibrated"].text
    assert 0.9 < result.shares["multiplied"] < 1
    assert {result.cells[format].state for format in ("compressed-tensors", "transformers", "gguf")} == {examining.YES}


def test_products_are_seen_through_views_and_copies():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.scale, self.bias = (nn.Parameter(torch.randn(4, 4)) for _ in range(4))
            self.table, self.row = nn.Embedding(9, 4), nn.Parameter(torch.randn(1, 4))

        def forward(self, ids):
            x = torch.baddbmm(self.bias[None], self.table(ids)[None], self.a.t()[None])[0]
            return (x + torch.einsum("bi,ji->bj", x, 2 * self.b[:4])) * self.scale + self.row @ x

    model = Reader()
    with torch.no_grad(), Watch(model) as watch:
        model(torch.tensor([1, 5, 2, 2]))
    assert watch.multiplied == {"a", "b"} and not watch.rounded


def test_a_tiny_model_has_one_layer_of_each_kind():
    config = shrunk("qwen3_next")
    assert config.layer_types == ["linear_attention", "full_attention"] and config.num_hidden_layers == 2
    assert (config.hidden_size, config.num_experts, config.vocab_size) == (64, 4, 256)
    assert shrunk("mixtral", {"num_local_experts": 3}).num_local_experts == 3


def test_what_a_sentence_names_is_left_out():
    found = planned(build(Entry("llama")))
    plan, rules, name = found.plan, found.rules, found.plan.layers[0].name
    assert not rules and without(plan, rules, f"gptq cannot hold {name}, because it is narrow.") == {name: "float"}
    assert without(plan, rules, "gguf takes models of other architectures.") is None
    assert without(plan, rules, f"gptq cannot hold {name}, because the layer is of the type Linear.") is None
