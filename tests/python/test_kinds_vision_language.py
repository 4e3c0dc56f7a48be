"""Models that read images beside text: loaded whole, their language model quantized, the rest left and named."""

import copy
import json
import shutil

import pytest
import torch
import torchqat
import transformers
from command import call
from conftest import TEXT
from model_zoo.models import Entry, build
from safetensors.torch import load_file
from sentences import matches, said
from torchqat.checkpoints.readers.reading import read_tensors
from torchqat.kinds import find_kind
from torchqat.model.blocks import find_blocks
from torchqat.model.prepare import make_plan
from torchqat.model.towers import beside_language_model, language_model
from torchqat.ptq.stream import quantize_folder
from torchqat.runs.scratch import train_tokenizer

BLOCKS = """version: 1
layers:
  - match: blocks
    weight: {dtype: int4, group_size: 16, grid: full}
"""
RUN = (
    BLOCKS
    + """data: {calibration: {samples: 4, sequence_length: 32}, evaluation: {samples: 4, sequence_length: 32}}
train: {steps: 2, batch_size: 2, sequence_length: 32, checkpoint_every: 2, validate_every: 2}
evaluate: {compare: []}
"""
)
TYPES = ("llava", "qwen3_vl", "gemma3", "smolvlm", "internvl", "mistral3")
SHAPE = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16,
}  # fmt: skip


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    """Folders of tiny models, by type."""
    made = {}

    def folder(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            build(Entry(kind, "image and text")).save_pretrained(made[kind])
        return made[kind]

    return folder


@pytest.fixture(scope="session")
def llava(tmp_path_factory):
    """The folder of a tiny LLaVA with its tokenizer, the processor of its images and a chat template."""
    folder = tmp_path_factory.mktemp("with-processor")
    tokenizer = train_tokenizer(TEXT, 400)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    text = transformers.LlamaConfig(**SHAPE, vocab_size=len(tokenizer), max_position_embeddings=128)
    vision = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    torch.manual_seed(0)
    config = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=image_token)
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    images = transformers.CLIPImageProcessor(**size)
    template = (
        "{% for m in messages %}{% for c in m.content %}{{ '<image>' if c.type == 'image' else c.text }}{% endfor %}"
    )
    processor = transformers.LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template + "{% endfor %}",
    )  # fmt: skip
    processor.save_pretrained(folder)
    images.save_pretrained(folder)
    return folder


def tokens(model, count=2):
    generator = torch.Generator().manual_seed(1)
    vocabulary = model.config.get_text_config().vocab_size
    return [torch.randint(40, vocabulary, (2, 24), generator=generator) for _ in range(count)]


def recipe(text=BLOCKS):
    return torchqat.parse_recipe(text, "recipe")


@pytest.mark.parametrize("kind", TYPES)
def test_the_language_model_is_quantized_and_what_is_beside_it_is_named(kind, zoo):
    model = find_kind("causal_lm").load(str(zoo(kind)), "float32")
    assert type(model) is type(build(Entry(kind, "image and text")))
    ran = set()
    for name, block in find_blocks(model, torch.nn.Linear):
        block.register_forward_hook(lambda *_, name=name: ran.add(name))
    model(input_ids=tokens(model)[0])
    plan = make_plan(model, recipe())
    assert ran and {".".join(layer.name.split(".")[:4]) for layer in plan.layers} == ran
    inside, parts = language_model(model), set(beside_language_model(model).values())
    left = {weight.name: weight.why for weight in plan.left}
    outside = [name for name in left if not name.startswith(f"{inside}.") and name != "lm_head"]
    assert outside and all(
        any(f"in {part}, beside the language model" in left[name] for part in parts) for name in outside
    )
    assert len(parts) == (1 if kind == "qwen3_vl" else 2) and left["lm_head"] == "output head"
    assert not any("beside" in why for name, why in left.items() if name not in outside)


def test_models_of_text_alone_have_nothing_beside_their_language_model(tiny_llama):
    for model in (
        tiny_llama,
        torch.nn.Linear(4, 4),
        build(Entry("t5", "text to text")),
        build(Entry("clip", "vectors")),
    ):
        assert language_model(model) is None and not beside_language_model(model)


@pytest.mark.parametrize("kind", TYPES)
def test_it_is_exported_by_the_names_of_save_pretrained_and_read_back(kind, zoo, tmp_path):
    folder = zoo(kind)
    model = find_kind("causal_lm").load(str(folder), "float32")
    prepared = torchqat.prepare(copy.deepcopy(model), recipe(), "gptq")
    torchqat.calibrate(prepared, tokens(model), lambda m, batch: m(input_ids=batch, use_cache=False))
    out = torchqat.export(prepared, tmp_path / "out")
    theirs = {name.removesuffix(".weight") for name in read_tensors(folder)}
    ours = {name.rpartition(".weight")[0] or name for name in read_tensors(out)}
    assert theirs == {name.removesuffix(".weight") for name in ours}
    checked = torchqat.verify(out, prepared, engine="transformers")
    assert checked.ok and checked.agreement.kl < 1e-7, str(checked)


def test_a_run_from_a_folder_to_a_checkpoint_that_sees(capsys, tmp_path, llava, data_folder):
    (tmp_path / "recipe.yaml").write_text(RUN)
    place = tmp_path / "run"
    code, out, err = call(
        capsys, "run", tmp_path / "recipe.yaml", "--model", llava, "--data", data_folder, "--output", place
    )
    assert code == 0, err
    exported = place / "exports" / "compressed-tensors"
    assert said(out + err, "verify.with-image")
    for name in ("preprocessor_config.json", "processor_config.json", "chat_template.jinja", "tokenizer.json"):
        assert (exported / name).is_file(), name
    assert (exported / "preprocessor_config.json").read_bytes() == (llava / "preprocessor_config.json").read_bytes()
    served = transformers.AutoModelForImageTextToText.from_pretrained(
        exported, quantization_config=transformers.CompressedTensorsConfig(dequantize=True), dtype=torch.float32
    )
    before = load_file(llava / "model.safetensors")
    after = read_tensors(exported)
    unquantized = [name for name in before if "vision_tower" in name or "projector" in name]
    assert len(unquantized) > 30 and all(torch.equal(before[name], after[name]) for name in unquantized)
    processor = transformers.AutoProcessor.from_pretrained(exported)
    from PIL import Image

    given = processor(text="<image> def", images=[Image.new("RGB", (40, 32), (9, 99, 200))], return_tensors="pt")
    assert served(**given).logits.isfinite().all()
    report = json.loads((place / "report.json").read_text())
    assert any(said(line, "plan.beside", part="model.vision_tower") for line in report["coverage"])
    code, out, err = call(capsys, "verify", exported, "--engine", "transformers")
    assert code == 0 and said(out, "verify.with-image"), err


def test_a_tower_that_is_not_the_one_that_was_trained_beside_is_seen(tmp_path, llava):
    kind = find_kind("causal_lm")
    model = kind.load(str(llava), "float32")
    given = kind.with_image(str(llava), model)
    assert given["pixel_values"].shape == (1, 3, 32, 32)
    out = torchqat.export(torchqat.prepare(model, recipe()), tmp_path / "out")
    checked = torchqat.verify(out, model, engine="transformers", example=given)
    assert checked.ok and checked.with_image.ok, str(checked)
    model.model.multi_modal_projector.register_forward_hook(lambda module, inputs, output: output * 1.01)
    checked = torchqat.verify(out, model, engine="transformers", example=given)
    assert checked.agreement.ok and not checked.with_image.ok and not checked.ok


def test_the_report_says_what_was_not_tried(begin, llava, tmp_path):
    shutil.copytree(llava, tmp_path / "blind")
    (tmp_path / "blind" / "processor_config.json").unlink()
    (tmp_path / "blind" / "preprocessor_config.json").unlink()
    report = begin(RUN, model=tmp_path / "blind")
    assert any(said(note, "verify.no-image", path=tmp_path / "blind") for note in report.notes), report.notes


def test_a_model_without_a_processor_is_tried_on_text_and_says_so(zoo):
    kind, notes = find_kind("causal_lm"), []
    model = kind.load(str(zoo("llava")), "float32")
    assert kind.with_image(str(zoo("llava")), model, notes.append) is None
    assert said(notes[0], "verify.no-image", path=zoo("llava"))


@pytest.mark.parametrize("kind", ["llava", "gemma3"])
def test_it_is_streamed_whole(kind, zoo, tmp_path):
    folder = zoo(kind)
    model = find_kind("causal_lm").load(str(folder), "float32")
    layer = recipe(BLOCKS + "initialize: {method: gptq, objective: layer}\n")  # as what is streamed is rounded
    streamed = quantize_folder(folder, tmp_path / "out", layer, tokens(model))
    prepared = torchqat.prepare(model, layer)
    torchqat.calibrate(prepared, tokens(model), lambda m, batch: m(input_ids=batch, use_cache=False))
    torchqat.export(prepared, tmp_path / "whole")
    ours, theirs = read_tensors(tmp_path / "out"), read_tensors(tmp_path / "whole")
    assert streamed.layers == 14 and ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_streamed_run_has_the_files_of_the_processor(capsys, tmp_path, llava, data_folder):
    (tmp_path / "recipe.yaml").write_text(BLOCKS + RUN.split("grid: full}\n")[1] + "initialize: {method: gptq}\n")
    place = tmp_path / "run"
    places = ["--model", llava, "--data", data_folder, "--output", place, "--stream"]
    code, _, err = call(capsys, "ptq", tmp_path / "recipe.yaml", *places)
    exported = place / "exports" / "compressed-tensors"
    assert code == 0 and transformers.AutoProcessor.from_pretrained(exported), err
    assert call(capsys, "verify", exported)[0] == 0


def test_only_what_reads_text_is_trained(llava):
    from torchqat.training.parameters import choose_parameters

    model = torchqat.prepare(find_kind("causal_lm").load(str(llava), "float32"), recipe()).requires_grad_(True)
    choose_parameters(recipe().train, model)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {n for n, _ in model.named_parameters() if "vision_tower" in n or "projector" in n}


def test_a_residual_stream_that_images_enter_is_not_rotated(llava):
    model = find_kind("causal_lm").load(str(llava), "float32")
    prepared = torchqat.prepare(model, recipe(BLOCKS + "initialize: {method: hadamard+mse}\n"))
    with pytest.raises(
        torchqat.UserError, match=matches("ptq.cannot-be-rotated", type="LlavaForConditionalGeneration")
    ):
        torchqat.calibrate(prepared, tokens(model), lambda m, batch: m(input_ids=batch, use_cache=False))


def test_layers_that_text_alone_does_not_reach_are_refused(capsys, tmp_path, llava, data_folder):
    text = RUN.replace("match: blocks", 'match: "type:Linear"')
    (tmp_path / "recipe.yaml").write_text(text)
    place = tmp_path / "run"
    code, _, err = call(
        capsys, "run", tmp_path / "recipe.yaml", "--model", llava, "--data", data_folder, "--output", place
    )
    assert code == 2 and said(err, "calls.never"), err


def test_cross_attention_to_images_is_named_where_there_are_none(zoo):
    """Blocks of mllama that read images are passed over in text alone: they are left in floating point, or refused."""
    model = find_kind("causal_lm").load(str(zoo("mllama")), "float32")

    def forward(model, batch):
        return model(input_ids=batch, use_cache=False)

    prepared = torchqat.prepare(copy.deepcopy(model), recipe(BLOCKS))
    name = "model.language_model.layers.1.cross_attn.q_proj"
    with pytest.raises(torchqat.UserError, match=matches("calls.never", layer=name)):
        torchqat.calibrate(prepared, tokens(model), forward)
    left = BLOCKS + "  - match: model.language_model.layers.1.*\n    weight: float\n"
    prepared = torchqat.prepare(model, recipe(left + "initialize: {method: gptq}\n"))
    found = torchqat.calibrate(prepared, tokens(model), forward)
    assert found.losses and not any(".layers.1." in place for place in found.losses)
