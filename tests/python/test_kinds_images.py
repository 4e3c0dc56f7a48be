"""Classifiers of images."""

import transformers
from sentences import said
from test_kinds_classifier import RUN, run, saved

VIT = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16,
    "patch_size": 8, "num_channels": 1,
}  # fmt: skip


def test_a_classifier_of_images_from_a_folder(capsys, tmp_path, monkeypatch):
    (tmp_path / "pictures.py").write_text(
        "import torch\n\n\ndef data():\n    g = torch.Generator().manual_seed(0)\n"
        "    return torch.randn(80, 1, 16, 16, generator=g), torch.randint(4, (80,), generator=g)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**VIT, num_labels=4))
    folder = saved(tmp_path / "vit", model)
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor"}')
    report, out = run(capsys, tmp_path, RUN, "--model", folder, "--data", "pictures:data")
    assert report["variants"][0]["kl"] > 0 and said(out, "verify.outputs", engine="transformers")
    assert (tmp_path / "run" / "exports" / "compressed-tensors" / "preprocessor_config.json").is_file()
    assert said(out, "verify.equal", layers=12)
