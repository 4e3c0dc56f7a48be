"""The installed C++ package: programs outside the tree find it, build, link and run; the examples do what they say."""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from build_folder import BUILD, ROOT, alone
from sentences import matches, said

CMAKE = shutil.which("cmake")
README = (ROOT / "examples/cpp/README.md").read_text()

pytestmark = pytest.mark.skipif(
    CMAKE is None or not (BUILD / "CMakeCache.txt").exists(), reason="make setup brings cmake and a build"
)


def run(*command, **options):
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def installed():
    """In a place that stays, so that compilers' caches are of use."""
    prefix = BUILD / "installed"
    shutil.rmtree(prefix, ignore_errors=True)
    with alone():
        run(CMAKE, "--install", BUILD, "--prefix", prefix)
    return prefix


def configure(source, build, installed, libtorch, *options):
    launcher = ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"] if shutil.which("ccache") else []
    prefixes = f"-DCMAKE_PREFIX_PATH={installed};{libtorch}"
    command = [CMAKE, "-S", source, "-B", build, prefixes, *launcher, *options]
    return subprocess.run([str(c) for c in command], capture_output=True, text=True)


def build(source, build, installed, libtorch):
    configured = configure(source, build, installed, libtorch)
    assert configured.returncode == 0, configured.stderr
    run(CMAKE, "--build", build, "--parallel", os.environ.get("MAX_JOBS", str(os.cpu_count())))


def project(folder, body, find="find_package(torchqat 0.1 REQUIRED)"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "main.cpp").write_text(body)
    (folder / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.22)\nproject(outside LANGUAGES CXX)\n"
        f"{find}\nadd_executable(outside main.cpp)\ntarget_link_libraries(outside PRIVATE qat::qat)\n"
    )
    return folder


TRAINS = """
#include <qat/qat.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <cstdio>

int main(int, char** argv) {
  torch::nn::Sequential net(torch::nn::Linear(64, 32), torch::nn::Linear(32, 8));
  const qat::Recipe recipe = qat::parse_recipe(
      "version: 1\\nlayers: [{match: '*', weight: {dtype: int4, group_size: 32}}]\\n", "here");
  qat::prepare(*net, recipe);
  qat::export_folder(*net, argv[1]);
  std::printf("%s %d layers\\n", QAT_VERSION, static_cast<int>(qat::verify(*net, argv[1]).layers));
  return qat::verify(*net, argv[1]).equal() ? 0 : 1;
}
"""

READS_A_RECIPE = """
#include <qat/recipe/recipe.h>
#include <cstdio>

int main(int, char** argv) {
  try {
    std::printf("%d rules\\n", static_cast<int>(qat::load_recipe(argv[1]).layers.size()));
  } catch (const qat::RecipeError& error) {
    std::printf("%s\\n", error.what());
  }
}
"""


def test_a_program_outside_the_tree_trains_and_exports(tmp_path, installed):
    source = project(BUILD / "outside", TRAINS)
    build(source, source / "build", installed, torch.utils.cmake_prefix_path)
    assert run(source / "build/outside", tmp_path / "out") == "0.1.0 2 layers\n"


def test_it_builds_against_an_unpacked_libtorch(tmp_path, installed):
    libtorch = tmp_path / "libtorch"  # laid out as the zip is
    libtorch.mkdir()
    for part in ("include", "lib", "share"):
        (libtorch / part).symlink_to(Path(torch.__file__).parent / part)
    source = project(tmp_path / "source", READS_A_RECIPE)
    build(source, tmp_path / "build", installed, libtorch)
    (tmp_path / "r.yaml").write_text("version: 1\nlayers: [{match: x, weight: {dtype: int5000}}]\n")
    printed = run(tmp_path / "build/outside", tmp_path / "r.yaml")
    place = {"file": tmp_path / "r.yaml", "line": 2, "column": 37, "key": "layers[0].weight.dtype"}
    assert said(printed, "recipe.unknown-word", **place, value="int5000")


def test_another_libtorch_is_refused_in_a_sentence(tmp_path, installed):
    other = tmp_path / "installed"
    shutil.copytree(installed, other)
    config = other / "lib/cmake/torchqat/torchqatConfig.cmake"
    major, minor = torch.__version__.split(".")[:2]
    config.write_text(config.read_text().replace(f"[.]{minor}(", "[.]1(").replace(f"{major}.{minor}", f"{major}.1"))
    source = project(tmp_path / "source", READS_A_RECIPE)
    printed = configure(source, tmp_path / "build", other, torch.utils.cmake_prefix_path)
    assert printed.returncode != 0
    text = re.sub(r"\s+", " ", printed.stderr)
    found = torch.__version__.split("+")[0]
    assert said(text, "build.another-libtorch", built=f"{major}.1", found=found)


def test_without_libtorch_it_says_how_to_find_one(tmp_path, installed):
    source = project(tmp_path / "source", READS_A_RECIPE)
    printed = configure(source, tmp_path / "build", installed, tmp_path / "nothing")
    assert printed.returncode != 0
    assert said(re.sub(r"\s+", " ", printed.stderr), "build.no-libtorch")


def test_another_version_of_torchqat_is_not_taken(tmp_path, installed):
    source = project(tmp_path / "source", READS_A_RECIPE, find="find_package(torchqat 0.2 REQUIRED)")
    printed = configure(source, tmp_path / "build", installed, torch.utils.cmake_prefix_path)
    assert printed.returncode != 0 and "0.1.0" in printed.stderr


@pytest.mark.parametrize(
    ("flags", "change", "refusal"),
    [
        (["-std=c++17"], None, matches("build.program-in-older-cpp")),
        (["-std=c++20", "-D_GLIBCXX_USE_CXX11_ABI=0"], None, matches("build.program-of-old-abi")),
        (["-std=c++20"], "#define QAT_TORCH_MINOR 1\n", matches("build.program-of-another-libtorch")),
    ],
    ids=["language", "strings", "torch"],
)
def test_the_compiler_refuses_another_abi(tmp_path, installed, flags, change, refusal):
    headers = tmp_path / "torchqat"
    shutil.copytree(installed / "include/torchqat/qat", headers / "qat")
    if change:
        file = headers / "qat/built_with.h"
        file.write_text(re.sub(r"#define QAT_TORCH_MINOR \d+\n", change, file.read_text()))
    (tmp_path / "main.cpp").write_text("#include <qat/abi.h>\n")
    include = Path(torch.__file__).parent / "include"
    torch_headers = [f"-I{include}", f"-I{include}/torch/csrc/api/include"]
    command = ["g++", "-fsyntax-only", *flags, f"-I{headers}", *torch_headers, str(tmp_path / "main.cpp")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode != 0 and re.search(refusal, result.stderr)


@pytest.fixture(scope="module")
def examples(installed):
    folder = BUILD / "examples_outside"
    build(ROOT / "examples/cpp", folder, installed, torch.utils.cmake_prefix_path)
    return folder


def readme_commands(program):
    """The commands of examples/cpp/README.md that run a program, or make its data."""
    return re.findall(rf"^(?:python3 )?\S*{program}\S* .+$", README, re.MULTILINE)


def say(command, programs, data):
    """Runs a command of the README, whose folder build/ has its programs and takes its data."""
    command = command.replace("build/examples/", "@/").replace("build/", f"{data}/").replace("@/", f"{programs}/")
    return run("bash", "-c", command.replace("python3", sys.executable), cwd=ROOT)


def test_digits(tmp_path, examples):
    (export,), (train,), (classify,) = map(readme_commands, ("export_digits", "digits_train", "digits_classify"))
    say(export, examples, tmp_path)
    printed = say(train, examples, tmp_path)
    percent = {
        name: float(value) for name, value in re.findall(r"^(float|naive INT4|INT4 QAT) +([\d.]+) %", printed, re.M)
    }
    assert percent["INT4 QAT"] >= percent["float"] - 0.5
    assert percent["INT4 QAT"] > percent["naive INT4"]
    assert "verified: 4 layers, bit for bit" in printed
    deployed = re.match(r"deployed +([\d.]+) % +([\d.]+) kB in memory", say(classify, examples, tmp_path))
    assert abs(float(deployed[1]) - percent["INT4 QAT"]) <= 0.25  # two images: sums of another order
    sizes = [float(size) for size in re.findall(r"([\d.]+) kB", printed)]
    assert sizes[1] < sizes[0] / 5


def test_characters(tmp_path, examples):
    (command,) = readme_commands("examples/characters")
    recipe = tmp_path / "recipe.yaml"  # of half the steps
    recipe.write_text((ROOT / "examples/cpp/characters/recipe.yaml").read_text().replace("steps: 150", "steps: 75"))
    # A text that does not change with our own, and is long enough for a model to learn from.
    text = shutil.copy(argparse.__file__, tmp_path / "text.py")
    command = command.replace("docs/numerics.md", str(text))
    printed = say(command.replace("examples/cpp/characters/recipe.yaml", str(recipe)), examples, tmp_path)
    bits = {
        name: float(value) for name, value in re.findall(r"^(float|naive|GPTQ|QAT|packed) +([\d.]+)", printed, re.M)
    }
    assert bits["naive"] > bits["GPTQ"] > bits["float"]
    assert bits["QAT"] < bits["GPTQ"]
    assert abs(bits["packed"] - bits["QAT"]) <= 0.002
    assert "verified bit for bit\n\nThe " in printed
