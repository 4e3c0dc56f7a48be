"""The build's refusals: each one sentence that says what to install."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from build_folder import BUILD, ROOT, alone
from sentences import matches, said

CMAKE = shutil.which("cmake")
NVCC = shutil.which("nvcc", path=f"{os.environ['PATH']}:/usr/local/cuda/bin")

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
    assert said(configure(tmp_path, torch_here(), "-DCMAKE_DISABLE_FIND_PACKAGE_yaml-cpp=ON"), "build.no-yaml")


def test_without_nlohmann_json(tmp_path):
    assert said(configure(tmp_path, torch_here(), "-DCMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=ON"), "build.no-json")


def test_without_torch(tmp_path):
    assert said(configure(tmp_path, "-DCMAKE_DISABLE_FIND_PACKAGE_Torch=ON"), "build.no-torch")


def test_torch_of_another_abi(tmp_path):
    folder = fake_torch(tmp_path, 'set(TORCH_CXX_FLAGS "-D_GLIBCXX_USE_CXX11_ABI=0")')
    assert said(configure(tmp_path, f"-DTorch_DIR={folder}"), "build.torch-of-old-abi")


def test_torch_that_is_too_old(tmp_path):
    folder = fake_torch(tmp_path, "set(Torch_VERSION 2.4)")
    assert said(configure(tmp_path, f"-DTorch_DIR={folder}"), "build.torch-too-old", version="2.4")


def test_cuda_check_without_nvcc(tmp_path):
    printed = configure(tmp_path, torch_here(), "-DQAT_CHECK_CUDA=ON", "-DQAT_NVCC=OFF")
    assert said(printed, "build.cuda-check-without-nvcc")


def test_cuda_by_a_cmake_that_is_too_old(tmp_path):
    """Said before torch's own configuration is asked, which fails on the C++ standard."""
    config = fake_torch(tmp_path, 'message(FATAL_ERROR "too late")')
    (tmp_path / "torch" / "share" / "cmake").mkdir(parents=True)
    config.rename(tmp_path / "torch" / "share" / "cmake" / "Torch")
    (tmp_path / "torch" / "lib").mkdir()
    (tmp_path / "torch" / "lib" / "libtorch_cuda.so").touch()
    targets = "add_library(CUDA::cublas INTERFACE IMPORTED)\nadd_library(CUDA::nvrtc INTERFACE IMPORTED)\n"
    (tmp_path / "FindCUDAToolkit.cmake").write_text(f"{targets}set(CMAKE_VERSION 3.25.1)")
    prefix = f"-DCMAKE_PREFIX_PATH={tmp_path / 'torch' / 'share' / 'cmake'}"
    printed = configure(tmp_path, prefix, f"-DCMAKE_MODULE_PATH={tmp_path}")
    assert said(printed, "build.cmake-too-old", version="3.25.1") and "too late" not in printed


def test_cuda_check_by_a_cmake_that_is_too_old(tmp_path):
    folder = fake_torch(tmp_path, "set(CMAKE_VERSION 3.25.1)")
    printed = configure(tmp_path, f"-DTorch_DIR={folder}", "-DQAT_CHECK_CUDA=ON", "-DQAT_NVCC=/bin/true")
    assert said(printed, "build.cmake-too-old", version="3.25.1")


def test_the_cpu_alone_by_an_old_cmake(tmp_path):
    """It goes on to what is looked for last."""
    folder = fake_torch(tmp_path, "set(CMAKE_VERSION 3.22.1)")
    options = (f"-DTorch_DIR={folder}", "-DQAT_BUILD_TESTS=ON", "-DCMAKE_DISABLE_FIND_PACKAGE_GTest=ON")
    printed = configure(tmp_path, *options)
    assert "CUDA" not in printed and said(printed, "build.no-googletest")


# What torch's own configuration does where it has CUDA, on a machine with no GPU to ask for its architecture.
TORCH_WITH_CUDA = f"""
include({torch.utils.cmake_prefix_path}/Torch/TorchConfig.cmake)
set(CMAKE_CUDA_COMPILER_FORCED ON)
enable_language(CUDA)
set(CMAKE_CUDA_ARCHITECTURES OFF)
set(CMAKE_CUDA_STANDARD ${{CMAKE_CXX_STANDARD}})
string(APPEND CMAKE_CUDA_FLAGS " -gencode arch=compute_50,code=sm_50 -gencode arch=compute_90a,code=sm_90a")
add_library(torch_cuda INTERFACE IMPORTED)
"""


def cuda_build(tmp_path, *options):
    """What nvcc is called with for each source, and what qat_ops is linked from."""
    build = tmp_path / "build"
    alone = "-DQAT_TOGETHER=OFF"  # or sources stand in groups of other names
    command = [CMAKE, "-S", ROOT, "-B", build, "-G", "Unix Makefiles", "-DQAT_BUILD_PYTHON=OFF", alone, *options]
    environment = {**os.environ, "CUDACXX": NVCC}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    commands = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        if entry["file"].endswith(".cu"):
            words = shlex.split(entry["command"])
            if "--options-file" in words:
                at = words.index("--options-file")
                words[at : at + 2] = shlex.split((build / words[at + 1]).read_text().replace("-isystem ", "-isystem="))
            commands[Path(entry["file"]).name] = [word.replace(str(build), "BUILD") for word in words]
    return commands, shlex.split((build / "CMakeFiles" / "qat_ops.dir" / "link.txt").read_text())


def architectures(commands):
    return [word for word in commands["quantize.cu"] if "arch=" in word]


@pytest.mark.skipif(NVCC is None, reason="nvcc is not here")
def test_cuda_check_is_the_real_build(tmp_path):
    folder = fake_torch(tmp_path, TORCH_WITH_CUDA)
    for_two = "-DQAT_CUDA_ARCHITECTURES=80-real;90"
    real, linked = cuda_build(tmp_path / "real", f"-DTorch_DIR={folder}", for_two)
    checked, without = cuda_build(tmp_path / "check", torch_here(), "-DQAT_CHECK_CUDA=ON", for_two)
    for words in checked.values():
        words.remove("-isystem=BUILD/cuda_stub")
    assert set(real) == {file.name for file in (ROOT / "ops" / "cuda").glob("*.cu")}
    assert real == checked
    assert "-fmad=false" in real["quantize.cu"] and "-std=c++20" in real["quantize.cu"]
    assert len([word for word in linked if word.endswith(".cu.o")]) == len(real)
    assert "-lcudart" in linked and "-lcudart_static" not in linked
    assert not [word for word in without if ".cu.o" in word or "cudart" in word]
    assert not [word for word in linked if "no_cuda" in word]
    # It looks for the operators that are there when its turn comes.
    assert [word for word in without if word.endswith(".cpp.o")][-1].endswith("no_cuda.cpp.o")


@pytest.mark.skipif(NVCC is None, reason="nvcc is not here")
def test_cuda_is_built_for_the_gpus_that_the_toolkit_knows(tmp_path):
    folder = fake_torch(tmp_path, TORCH_WITH_CUDA)
    built = architectures(cuda_build(tmp_path / "real", f"-DTorch_DIR={folder}")[0])
    known = subprocess.run([NVCC, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    wanted = [arch for arch in (75, 80, 86, 89, 90, 100, 120) if f"compute_{arch}" in known]
    assert built == [
        *(f"--generate-code=arch=compute_{arch},code=[sm_{arch}]" for arch in wanted[:-1]),
        f"--generate-code=arch=compute_{wanted[-1]},code=[compute_{wanted[-1]},sm_{wanted[-1]}]",
    ]


def test_a_torch_other_than_the_one_built_for_is_named(monkeypatch):
    import importlib

    import torchqat._library as library

    monkeypatch.setattr(torch, "__version__", "2.99.0")
    with pytest.raises(ImportError, match=matches("build.another-torch", installed="2.99.0")):
        importlib.reload(library)
    monkeypatch.undo()
    importlib.reload(library)


def test_pip_install_outside_the_tree(tmp_path):
    """Not editable: a copy elsewhere, with its libraries, that does not need this tree."""
    environment = {**os.environ, "TORCHQAT_BUILD_DIR": str(BUILD)}
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
    with alone():
        done = subprocess.run(pip, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    code = "import torch, torchqat; print(torchqat.__file__, torchqat.QuantSpec(4), torch.ops.qat.pack.default)"
    environment["PYTHONPATH"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path)) and "qat.pack" in done.stdout


def test_no_product_and_sum_become_one():
    """Compilers for machines with fused multiply-add would else round once where docs/numerics.md rounds twice."""
    commands = json.loads((BUILD / "compile_commands.json").read_text())
    products = ["packed_linear.cpp"]  # whose sums are those of any product
    for target, contracted in (("qat_ops_objects", products), ("qat_objects", [])):
        ours = [one for one in commands if one["output"].startswith(f"CMakeFiles/{target}.dir/")]
        free = [one for one in ours if re.findall(r"-ffp-contract=(\w+)", one["command"])[-1:] != ["off"]]
        assert ours and [one["file"] for one in free] == [str(ROOT / "ops/cpu" / name) for name in contracted]


def test_rounding_stands_in_one_header():
    for folder in ("ops", "qat"):
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and file.name != "affine.h":
                assert not re.search(r"\b(std::round|nearbyintf?|rintf?|lrintf?|roundf)\(", file.read_text()), file
