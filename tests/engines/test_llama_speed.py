"""What a quantized file is for: it is smaller, and llama.cpp generates faster from it."""

import torchqat
from engine_models import SIGNED, needs
from torchqat.checkpoints.formats.gguf import write_gguf
from torchqat.files import size_of
from torchqat.runs.scratch import new_model
from torchqat.verification.engines import ENGINES, Bench, Question


def test_the_smaller_file_is_the_faster_one(tmp_path):
    """Where linear layers dominate: at most 0.30 of the size of the float16 file, and faster at generating."""
    needs("llama.cpp")

    class Wide:
        hidden_size, intermediate_size, layers, heads, kv_heads, sequence_length = 1024, 2816, 8, 16, 8, 512

    model = new_model(Wide, 512, seed=0)
    (tmp_path / "float").mkdir()
    write_gguf(model, [], None, tmp_path / "float" / "model.gguf")
    model = torchqat.prepare(model, torchqat.parse_recipe(
        f'version: 1\nlayers:\n  - {{match: "model.layers.*", weight: {SIGNED}}}\n'
    ))  # fmt: skip
    folder = torchqat.export(model, tmp_path / "out", "gguf")
    assert size_of(folder) <= 0.30 * size_of(tmp_path / "float")
    bench = Bench(list(range(256)), new_tokens=32)
    speeds = [
        ENGINES["llama.cpp"].serve("gguf", Question(str(f), [], bench=bench)).speed
        for f in (tmp_path / "float", folder)
    ]
    print(f"\nfloat16 {speeds[0]}, Q4_0 {speeds[1]}")
    assert speeds[1].peak_bytes < speeds[0].peak_bytes
    assert speeds[1].decode > speeds[0].decode
