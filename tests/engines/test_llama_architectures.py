"""Every architecture that GGUF files are written of, computed by llama.cpp."""

import pytest
import torch
import torchqat
from engine_models import IN_EIGHT_BITS, SIGNED, needs
from gguf_models import BLOCKS
from gguf_models import MODELS as ARCHITECTURES
from gguf_models import build as build_architecture
from torchqat.checkpoints.formats.gguf import write_gguf
from torchqat.verification.engines import ENGINES, Question
from torchqat.verification.engines.agreement import agreement_of


@pytest.mark.parametrize("weight", ["float16", "Q4_0", "Q8_0"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_llama_cpp_computes_each_architecture(name, weight, tmp_path):
    """Tiny models of random weights whose predictions differ; windows are shorter than the prompts.

    In float16 all is as exact as the cache. Weights in blocks are multiplied with inputs that llama.cpp rounds to 8 bits, so
    that tokens reach other experts, unless blocks add little to what they are given.
    """
    needs("llama.cpp")
    model = build_architecture(name, gain=1.3 if weight == "float16" else 0.6)
    folder = tmp_path / "out"
    if weight == "float16":
        folder.mkdir()
        write_gguf(model, [], None, folder / "model.gguf")
    else:
        spec = SIGNED if weight == "Q4_0" else IN_EIGHT_BITS
        rule = (
            f"version: 1\nlayers:\n  - {{match: '{BLOCKS.get(name.split()[0], 'model.layers.*')}', weight: {spec}}}\n"
        )
        model = torchqat.prepare(model, torchqat.parse_recipe(rule)).eval()
        torchqat.export(model, folder, "gguf")
        assert torchqat.verify(folder, model, engine="reader").ok
    tokens = torch.randint(5, 320, (4, 40), generator=torch.Generator().manual_seed(2))
    engine = ENGINES["llama.cpp"]
    served = engine.serve("gguf", Question(str(folder), tokens.tolist(), context=64))
    found = agreement_of(engine, served, model, tokens, half=True)
    print(f"\n| {name} | {weight} | {found} |")
    assert found.ok, str(found)
    assert weight != "float16" or (found.kl < 1e-4 and found.same_text >= 2), str(found)
