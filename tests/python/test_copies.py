"""Copies of a prepared model: pickled, deep, averaged, cast and compiled ones."""

import copy
import io

import peft
import pytest
import torch
import torchqat
from sentences import matches
from test_experts import build, recipe_of
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchqat.layers.layer_state import STATE_NAMES
from torchqat.layers.prepared import quant_layers
from trainers import LADDER, STEPS, adamw, batch, llama, loss_of, prepared, recipe


def with_adapters():
    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    return torchqat.attach_adapters(peft.get_peft_model(prepared(), config))


MODELS = {
    "learned": lambda: (prepared(), recipe()),
    "mse": lambda: (prepared(recipe("mse")), recipe("mse")),
    "minmax": lambda: (prepared(recipe("minmax")), recipe("minmax")),
    "experts": lambda: (torchqat.prepare(build("qwen3_moe"), recipe_of()), recipe_of()),
    "adapters": lambda: (with_adapters(), recipe()),
}


def pickled(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def go_on(model, of, first=0, last=STEPS):
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    schedule, optimizer = torchqat.Schedule(model, of, STEPS), torch.optim.SGD(trained, 1e-3)
    assert schedule.current_step == first
    for step in range(first, last):
        loss_of(model, batch(step)).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model


def equal(a, b):
    assert a.state_dict().keys() == b.state_dict().keys()
    return all(torch.equal(a.state_dict()[name], b.state_dict()[name]) for name in a.state_dict())


@pytest.mark.shows(trainer="copies")
@pytest.mark.parametrize(
    "copied",
    [
        pytest.param(pickled, marks=pytest.mark.shows(feature="torch.save(model), pickle")),
        pytest.param(copy.deepcopy, marks=pytest.mark.shows(feature="copy.deepcopy")),
    ],
)
@pytest.mark.parametrize("kind", MODELS)
def test_a_copy_trains_on_and_exports_the_same_bits(kind, copied, tmp_path):
    model, of = MODELS[kind]()
    go_on(model, of, last=5)
    other = copied(model)
    assert type(other) is type(model)
    for one, folder in ((model, "one"), (other, "other")):
        go_on(one, of, first=5)
        merged = one.merge_and_unload() if kind == "adapters" else one
        torchqat.export(merged, tmp_path / folder, "safetensors")
    files = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("one", "other")]
    assert files[0] == files[1]
    assert equal(model, other)


def test_a_copy_does_not_move_what_it_was_copied_from():
    model, of = prepared(), recipe()
    schedule = torchqat.Schedule(model, of, STEPS)
    early = copy.deepcopy(model)
    for _ in range(6):
        schedule.step()
    early.load_state_dict(early.state_dict())
    assert schedule.current_step == 6 and quant_layers(model)[0][1].weight_bits == 4
    assert quant_layers(early)[0][1].weight_bits == 8
    assert torchqat.Schedule(early, of, STEPS).current_step == 0


def test_a_second_schedule_takes_the_place_of_the_first():
    model, of = prepared(), recipe()
    first = torchqat.Schedule(model, of, STEPS)
    for _ in range(6):
        first.step()
    second = torchqat.Schedule(model, of, STEPS)
    assert second.current_step == 6
    early = prepared()
    torchqat.Schedule(early, of, STEPS)
    model.load_state_dict(early.state_dict())
    assert second.current_step == 0 and first.current_step == 6
    with pytest.raises(torchqat.UserError, match=matches("training.another-schedule")):
        first.step()


def average(scale, start, **options):
    """A model trained to its end, and its average from step ``start`` on."""
    of = recipe(scale)
    model = prepared(of)
    schedule, optimizer = torchqat.Schedule(model, of, STEPS, adamw(model, of)), adamw(model, of)
    ema = None
    for step in range(STEPS):
        if step == start:
            ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), **options)
        loss_of(model, batch(step)).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if ema is not None:
            ema.update_parameters(model)
    return model, ema


@pytest.mark.shows(trainer="copies", feature="AveragedModel, moving averages")
@pytest.mark.parametrize(("scale", "start"), [("learned", 4), ("mse", 0), ("minmax", 0)])
def test_an_average_is_exported(scale, start, tmp_path):
    model, ema = average(scale, start)
    x = ema(input_ids=batch(0)).logits
    assert torch.equal(x, ema.module(input_ids=batch(0)).logits)
    assert not torch.equal(x, model(input_ids=batch(0)).logits)
    folder = torchqat.export(ema, tmp_path / "out", "safetensors")
    assert torchqat.verify(folder, ema.module, engine="reader").ok
    assert torchqat.convert(ema)[0].weight.bits == 4


@pytest.mark.shows(trainer="copies", feature="averages of learned scales over a change of widths", refused=True)
def test_learned_scales_are_not_averaged_over_widths(tmp_path):
    _, ema = average("learned", 0)
    refusal = matches("training.averaged-over-widths", layer="QuantLinear", bits=8, others=4)
    with pytest.raises(torchqat.UserError, match=refusal):
        ema(input_ids=batch(0))
    _, ema = average("learned", 0)
    with pytest.raises(torchqat.UserError, match=refusal):
        torchqat.export(ema.module, tmp_path / "out", "safetensors")


@pytest.mark.shows(trainer="copies", feature="AveragedModel(use_buffers=True)", refused=True)
def test_buffers_are_not_averaged(tmp_path):
    _, ema = average("mse", 4, use_buffers=True)
    with pytest.raises(torchqat.UserError, match=matches("training.averaged-buffers")):
        torchqat.export(ema, tmp_path / "out", "safetensors")


def average_of_all(decay, ladder):
    """As timm's ModelEmaV2: the mean of everything in the state, whole numbers cut off."""
    rule = "{dtype: int4, group_size: 16, symmetric: false, scale: mse}"
    of = recipe("mse", ladder=ladder, rules=f'  - match: "model.layers.*"\n    weight: {rule}\n')
    model = prepared(of)
    schedule, ema = torchqat.Schedule(model, of, STEPS), copy.deepcopy(model)
    for _ in range(STEPS):
        schedule.step()
        with torch.no_grad():
            for mean, own in zip(ema.state_dict().values(), model.state_dict().values(), strict=True):
                mean.copy_(decay * mean + (1.0 - decay) * own)
    return model, ema


@pytest.mark.shows(trainer="copies", feature="averages of all of state_dict() (timm's ModelEmaV2)", refused=True)
@pytest.mark.parametrize("decay", [0.9, 0.9999])
@pytest.mark.parametrize("ladder", ["", LADDER])
def test_whole_numbers_are_not_averaged(decay, ladder, tmp_path):
    model, ema = average_of_all(decay, ladder)
    refusal = matches("training.averaged-in-a-layer", layer="QuantLinear")
    with pytest.raises(torchqat.UserError, match=refusal):
        ema(input_ids=batch(0))
    with pytest.raises(torchqat.UserError, match=refusal):
        torchqat.export(ema, tmp_path / "out", "safetensors")
    with pytest.raises(RuntimeError, match=refusal):
        model.load_state_dict(ema.state_dict())


def test_a_mean_of_whole_numbers_that_is_the_same_numbers_is_fine():
    model, ema = average_of_all(0.5, "")
    assert torch.equal(ema(input_ids=batch(0)).logits, model(input_ids=batch(0)).logits)


@pytest.mark.shows(trainer="casts", feature="half(), bfloat16(), to(dtype) after prepare")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", MODELS)
def test_a_cast_leaves_scales_in_float32(kind, dtype, tmp_path):
    model, _ = MODELS[kind]()
    loss_of(model, batch(0)).backward()  # gradients are cast as well
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert model.to(dtype) is model
    for name, tensor in model.state_dict().items():
        if name.rpartition(".")[2] in STATE_NAMES and "lora_quantized" not in name:
            assert torch.equal(tensor, before[name]) and tensor.dtype == before[name].dtype, name
    loss_of(model, batch(0)).backward()
    assert all(p.grad is None or p.grad.dtype == p.dtype for p in model.parameters())
    assert model.get_parameter(next(n for n, p in model.named_parameters() if "embed" in n)).dtype == dtype
    if kind in ("learned", "mse", "minmax"):
        assert torchqat.verify(torchqat.export(model, tmp_path / "out", "safetensors"), model, engine="reader").ok


@pytest.mark.shows(trainer="torch.compile", feature="before and after prepare")
@pytest.mark.parametrize(
    "how", ["before prepare", "before prepare, called", "in place before prepare", "after prepare"]
)
def test_a_compiled_model_trains_and_is_exported(how, tmp_path):
    of = recipe("mse", rules='  - match: "model.layers.*"\n    weight: {dtype: int4, group_size: 16, scale: mse}\n')
    model = llama()
    plain = torchqat.prepare(copy.deepcopy(model), of)
    if how == "in place before prepare":
        model.compile(backend="eager")
        given = torchqat.prepare(model, of)
    elif how == "after prepare":
        given = torch.compile(torchqat.prepare(model, of), backend="eager")
    else:
        given = torch.compile(model, backend="eager")
        if how.endswith("called"):
            given(input_ids=batch(0))
        assert torchqat.prepare(given, of) is given
    for one in (plain, given):
        torchqat.calibrate(one, [batch(0)])
        go_on(one, of)
    assert torch.equal(given(input_ids=batch(0)).logits, plain(input_ids=batch(0)).logits)
    folder = torchqat.export(given, tmp_path / "out", "safetensors")
    assert torchqat.verify(folder, given, engine="reader").ok
    assert [weights.name for weights in torchqat.convert(given)] == [
        weights.name for weights in torchqat.convert(plain)
    ]


@pytest.mark.shows(trainer="DDP", feature="prepare after it", refused=True)
def test_a_model_in_ddp_is_not_prepared(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        spread = torch.nn.parallel.DistributedDataParallel(llama())
        with pytest.raises(torchqat.UserError, match=matches("model.in-parallel", type="DistributedDataParallel")):
            torchqat.prepare(spread, recipe())
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.shows(trainer="activation checkpointing", feature="the same bits as without")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("observer", ["minmax", "moving_average"])
def test_recomputed_activations_are_observed_once(observer, reentrant):
    """Fault of a moving average that moved twice a step."""
    rules = (
        '  - match: "model.layers.*"\n    weight: {dtype: int8, granularity: channel, grid: full, scale: learned}\n'
        f"    input: {{dtype: int8, granularity: tensor, symmetric: false, observer: {observer}}}\n"
    )
    of = recipe(ladder="", rules=rules)

    def train(recompute):
        model = prepared(of)
        if recompute:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        return go_on(model.train(), of)

    assert equal(train(False), train(True))
