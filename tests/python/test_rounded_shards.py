"""FSDP2 gathers weights of which each process rounded its rows: the numbers of rounding them whole, a share of the work."""

import re

import pytest
from launcher import said_by
from sentences import matches

WORKER = '''
import sys, torch, torchqat, transformers
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from torchqat.layers.prepared import quant_layers
from torchqat.layers.quant_layer import QuantLayer
from torchqat.layers.sharded import local, whole
from torchqat.training import spread
from torchqat.training.parameters import choose_parameters
from torchqat.training.processes import count, processes, rank
from torchqat.training.spread import shard

CASES = {
    "minmax": "dtype: int4, group_size: 8, grid: full",
    "narrow": "dtype: int4, group_size: 8, grid: narrow",
    "asymmetric": "dtype: int4, group_size: 8, symmetric: false",
    "searched": "dtype: int4, group_size: 8, grid: full, scale: mse",
    "searched-asymmetric": "dtype: int4, group_size: 8, symmetric: false, scale: mse",
    "learned": "dtype: int4, group_size: 8, grid: full, scale: learned",
    "learned-asymmetric": "dtype: int4, group_size: 8, symmetric: false, scale: learned",
    "learned-channel": "dtype: int8, granularity: channel, grid: full, scale: learned",
    "mxfp4": "dtype: mxfp4",
    "float8": "dtype: fp8_e4m3, granularity: channel",
    "tensor": "dtype: int8, granularity: tensor",
    "tensor-learned": "dtype: int8, granularity: tensor, grid: full, scale: learned",
    "nvfp4": "dtype: nvfp4",
}
MODES = ["bfloat16", "experts", "experts-learned", "transposed-experts", "weights-frozen", "adapters"]
HYBRID = ["hybrid", "hybrid-learned"]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.narrow = nn.Linear(32, 64), nn.Linear(64, 5, bias=False)
        self.conv = nn.Conv1d(1, 32, 32, bias=False)

    def forward(self, x):
        x = x + self.conv(self.narrow(self.wide(x)).mean(-1, keepdim=True).expand(-1, 32)[:, None]).squeeze(-1)
        return torch.tanh(x)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class Rows(TorchDispatchMode):
    """Rows of weights that were rounded, forward and backward; those of products that round the weight themselves apart."""

    def __init__(self):
        super().__init__()
        self.alone = self.in_products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        if name in ("qat::fake_quantize", "qat::_fake_quantize_backward", "qat::_fake_quantize_backward_"):
            self.alone += len(args[0])
        if name in ("qat::quant_linear", "qat::_quant_linear_backward") and next(a for a in args if isinstance(a, str)):
            self.in_products += len(args[1] if name == "qat::quant_linear" else args[2])
        return func(*args, **(kwargs or {}))


def held(model):
    """Rows of weights that this process holds."""
    layers = [layer for _, layer in quant_layers(model)]
    return sum(layer.matrix_shape[0] * local(layer.weight).shape[0] // layer.weight.shape[0] for layer in layers)


def experts(transposed):
    sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, num_experts_per_tok=2, head_dim=8)
    if transposed:
        return transformers.GptOssForCausalLM(transformers.GptOssConfig(**sizes, num_local_experts=6))
    config = transformers.Qwen3MoeConfig(**sizes, moe_intermediate_size=16, num_experts=6)
    return transformers.Qwen3MoeForCausalLM(config)


def build(case):
    torch.manual_seed(0)
    model = experts("transposed" in case) if "experts" in case else Model()
    match = "*experts*" if "experts" in case else "*"
    weight = CASES.get(case, CASES["learned" if case.endswith(("learned", "frozen")) else "minmax"])
    trains = "train: {steps: 3, parameters: lora, lora: {rank: 2}}" if case == "adapters" else ""
    recipe = torchqat.parse_recipe(f"version: 1\\nlayers: [{{match: '{match}', weight: {{{weight}}}}}]\\n{trains}\\n")
    model = torchqat.prepare(model, recipe)
    with torch.no_grad():
        for _, layer in quant_layers(model):
            scale = getattr(layer, "weight_scale", None)
            if isinstance(scale, nn.Parameter):
                scale.mul_(0.7)  # so that levels clip
    if case == "weights-frozen":
        for _, layer in quant_layers(model):
            layer.weight.requires_grad_(False)
    choose_parameters(recipe.train, model)
    return model


def hybrid(model):
    mesh = init_device_mesh("cpu", (2, count() // 2), mesh_dim_names=("replicas", "shards"))
    parts = spread.gathered_together(model, QuantLayer)
    spread._gather_rounded(parts, model)
    for module in [*parts, model]:
        fully_shard(module, mesh=mesh)
    return model


def train(case, rounded):
    kept, spread._gather_rounded = spread._gather_rounded, spread._gather_rounded if rounded else lambda *_: None
    model = build(case)
    model = hybrid(model) if case in HYBRID else shard(model, QuantLayer)
    spread._gather_rounded = kept
    torch.manual_seed(1)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    gradients = {}
    with Rows() as rows:
        for step in range(3):
            for _ in range(2):
                x = torch.randint(64, (count(), 16)) if "experts" in case else torch.randn(4 * count(), 32)
                x = x.chunk(count())[rank()]
                with torch.autocast("cpu", torch.bfloat16, enabled=case == "bfloat16"):
                    loss = model(x, labels=x).loss if "experts" in case else model(x).square().mean()
                (loss / 2).backward()
            gradients.update({f"{n} {step}": whole(p.grad) for n, p in model.named_parameters() if p.grad is not None})
            optimizer.step()
            optimizer.zero_grad()
    ends = {name: whole(p.detach()) for name, p in model.named_parameters()}
    return gradients, ends, f"{rows.alone} and {rows.in_products} of {held(model)}"


with processes():
    # Three cut rows unevenly, and the last of four holds none of a layer's five.
    uneven = ["minmax", "searched", "learned", "learned-asymmetric", "experts-learned"]
    for case in {2: [*CASES, *MODES], 3: uneven, 4: ["minmax", "learned", *HYBRID]}[count()]:
        (grads, ends, rows), (plain, others, _) = train(case, True), train(case, False)
        assert grads.keys() == plain.keys(), set(grads) ^ set(plain)
        pairs = [(v, plain[n]) for n, v in grads.items()] + [(v, others[n]) for n, v in ends.items()]
        apart = max(((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item() for a, b in pairs)
        sys.stdout.write(f"{case} {count()} process {rank()}: {apart:.1e} apart, {rows} rows\\n")
'''


# Scales over several rows or the whole, or something that comes before the rounding: a weight is gathered as it is.
GATHERED_AS_THEY_ARE = {"tensor", "tensor-learned", "nvfp4", "weights-frozen", "adapters"}
# Three steps of two micro-batches; in each a weight is rounded for the forward, for the backward, and its gradient.
PASSES = 3 * 2 * 3


@pytest.fixture(scope="module", params=[2, 3, 4])
def found(request, tmp_path_factory):
    """How far each case is from rounding whole weights, and what it rounded, by case and process."""
    printed = said_by(WORKER, tmp_path_factory.mktemp("shards"), request.param)
    line = r"(\S+) \d process (\d): (\S+) apart, (\d+) and (\d+) of (\d+) rows"
    return [(case, float(apart), *map(int, rows)) for case, _, apart, *rows in re.findall(line, printed)]


def test_numbers_are_those_of_rounding_whole_weights(found):
    """Gradients and weights of three steps: the same bits, but where sums have another order."""
    assert len(found) >= 8
    for case, apart, *_ in found:
        sums_differ = "learned" in case or case == "transposed-experts"
        assert apart <= (2e-6 if sums_differ and case != "tensor-learned" else 0.0), case


def test_a_process_rounds_the_rows_that_it_holds(found):
    for case, _, alone, in_products, rows in found:
        if case in GATHERED_AS_THEY_ARE:
            assert in_products > 0, case
        else:
            assert (alone, in_products) == (PASSES * rows, 0), case


ELSEWHERE = """
import io, sys, torch, torchqat
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torchqat.layers.quant_layer import QuantLayer
from torchqat.layers.sharded import local
from torchqat.training.processes import processes
from torchqat.training.spread import shard

recipe = torchqat.parse_recipe("version: 1\\nlayers: [{match: '*', weight: {dtype: int4, group_size: 8}}]\\n")

def model():
    return torchqat.prepare(nn.Sequential(nn.ModuleList([nn.Linear(32, 8)]), nn.Linear(32, 8)), recipe)

with processes():
    spread = shard(model(), QuantLayer)
    file = io.BytesIO()
    torch.save({name: local(tensor) for name, tensor in spread.state_dict().items()}, file)
    file.seek(0)
    kinds = {type(tensor).__name__ for tensor in torch.load(file, weights_only=True).values()}
    sys.stdout.write(f"saved {kinds}\\n")
    for policy in (MixedPrecisionPolicy(param_dtype=torch.bfloat16), MixedPrecisionPolicy(reduce_dtype=torch.bfloat16)):
        for late in (False, True):
            given = model()
            schedule = torchqat.Schedule(given, recipe, 4) if late else None
            fully_shard(given, mp_policy=policy)
            try:
                schedule.step() if late else torchqat.Schedule(given, recipe, 4)
                sys.stdout.write("taken\\n")
            except torchqat.UserError as error:
                sys.stdout.write(f"{error}\\n")
"""


def test_shards_are_saved_as_tensors_and_masters_are_gathered_in_their_dtype(tmp_path):
    printed = said_by(ELSEWHERE, tmp_path, 2)
    assert printed.count("saved {'Tensor'}") == 2
    assert len(re.findall(matches("training.gathered-in-another-dtype", found="bfloat16"), printed)) == 4
    assert printed.count("taken") == 4
