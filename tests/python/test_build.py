"""The build's refusals: each one sentence that says what to install."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
CMAKE = shutil.which("cmake")

pytestmark = pytest.mark.skipif(CMAKE is None, reason="cmake is not on the PATH; make setup brings it")


def configure(tmp_path, *options):
    command = [CMAKE, "-S", ROOT, "-B", tmp_path / "build", "-DQAT_BUILD_PYTHON=OFF", *options]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode != 0
    return re.sub(r"\s+", " ", result.stderr)


def torch_here():
    return f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"


def fake_torch(tmp_path, body):
    folder = tmp_path / "Torch"
    folder.mkdir()
    (folder / "TorchConfig.cmake").write_text(f"set(TORCH_LIBRARIES)\nset(TORCH_INCLUDE_DIRS)\n{body}\n")
    return folder


def test_without_yaml_cpp(tmp_path):
    said = configure(tmp_path, torch_here(), "-DCMAKE_DISABLE_FIND_PACKAGE_yaml-cpp=ON")
    assert (
        "torchqat reads recipes with yaml-cpp, which was not found: install it with apt-get install libyaml-cpp-dev."
        in said
    )


def test_without_nlohmann_json(tmp_path):
    said = configure(tmp_path, torch_here(), "-DCMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=ON")
    assert "install it with apt-get install nlohmann-json3-dev." in said


def test_without_torch(tmp_path):
    said = configure(tmp_path, "-DCMAKE_DISABLE_FIND_PACKAGE_Torch=ON")
    assert "torchqat builds against PyTorch, which was not found: install torch>=2.11" in said


def test_torch_of_another_abi(tmp_path):
    folder = fake_torch(tmp_path, 'set(TORCH_CXX_FLAGS "-D_GLIBCXX_USE_CXX11_ABI=0")')
    said = configure(tmp_path, f"-DTorch_DIR={folder}")
    assert "needs a torch built with the C++11 ABI, but the one found uses the old ABI: install a current wheel" in said


def test_torch_that_is_too_old(tmp_path):
    folder = fake_torch(tmp_path, "set(Torch_VERSION 2.4)")
    assert "torchqat needs torch 2.11 or newer, but found 2.4: install it with pip" in configure(
        tmp_path, f"-DTorch_DIR={folder}"
    )


def test_cuda_check_without_nvcc(tmp_path):
    said = configure(tmp_path, torch_here(), "-DQAT_CHECK_CUDA=ON", "-DQAT_NVCC=OFF")
    assert (
        "QAT_CHECK_CUDA is ON, but nvcc was not found: install the CUDA Toolkit or pass -DQAT_CHECK_CUDA=OFF." in said
    )


def test_a_torch_other_than_the_one_built_for_is_named(monkeypatch):
    import importlib

    import torchqat._library as library

    monkeypatch.setattr(torch, "__version__", "2.99.0")
    with pytest.raises(ImportError, match="was built for torch .* but torch 2.99.0 is installed: run pip install"):
        importlib.reload(library)
    monkeypatch.undo()
    importlib.reload(library)


def test_pip_install_outside_the_tree(tmp_path):
    """Not editable: a copy elsewhere, with its libraries, that does not need this tree."""
    build = os.environ.get("TORCHQAT_BUILD_DIR", ROOT / "build" / "native")
    environment = {**os.environ, "TORCHQAT_BUILD_DIR": str(build)}
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-build-isolation",
        "--no-deps",
        "--target",
        tmp_path,
        ROOT,
    ]
    done = subprocess.run(pip, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    code = "import torch, torchqat; print(torchqat.__file__, torchqat.QuantSpec(4), torch.ops.qat.pack.default)"
    environment["PYTHONPATH"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path)) and "qat.pack" in done.stdout


def test_no_product_and_sum_become_one():
    """Compilers for machines with fused multiply-add would else round once where docs/numerics.md rounds twice."""
    build = Path(os.environ.get("TORCHQAT_BUILD_DIR", ROOT / "build" / "native"))
    commands = json.loads((build / "compile_commands.json").read_text())
    for folder, contracted in (("ops", ["packed_linear.cpp"]), ("qat", [])):  # whose sums are those of any product
        ours = [one for one in commands if one["file"].startswith(f"{ROOT / folder}/") and one["file"].endswith(".cpp")]
        free = [one for one in ours if re.findall(r"-ffp-contract=(\w+)", one["command"])[-1:] != ["off"]]
        assert ours and [one["file"] for one in free] == [str(ROOT / "ops/cpu" / name) for name in contracted]


def test_rounding_stands_in_one_header():
    for folder in ("ops", "qat"):
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and file.name != "affine.h":
                assert not re.search(r"\b(std::round|nearbyintf?|rintf?|lrintf?|roundf)\(", file.read_text()), file
