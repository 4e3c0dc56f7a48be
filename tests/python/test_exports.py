"""What the libraries show to the dynamic linker: what headers mark QAT_API, and nothing of anybody else's."""

import re
import shutil
import subprocess

import pytest
from build_folder import BUILD

LIBRARIES = ["libqat_ops.so", "libqat.so"]
# What the compiler makes of a class beside its functions.
OURS = r"(typeinfo for |typeinfo name for |vtable for )?qat::"

pytestmark = pytest.mark.skipif(
    shutil.which("nm") is None or not (BUILD / "libqat.so").exists(), reason="make setup brings binutils and a build"
)


def symbols(library, *options):
    command = ["nm", "-D", "--defined-only", *options, str(BUILD / library)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line.split(maxsplit=2)[2] for line in said.splitlines() if line.split()[1] != "A"]


@pytest.mark.parametrize("library", LIBRARIES)
def test_only_what_is_ours_is_shown(library):
    found = symbols(library, "-C")
    assert len(found) > 50
    assert not [name for name in found if not re.match(OURS, name)]
    assert not [name for name in found if re.match(rf"{OURS}detail::", name) or re.search("nlohmann|YAML", name)]


def test_what_headers_do_not_mark_is_hidden():
    shown = {re.sub(r"(\[abi:cxx11\])?\(.*", "", name) for library in LIBRARIES for name in symbols(library, "-C")}
    assert {"qat::parse_recipe", "qat::choose_qparams", "qat::gptq", "typeinfo for qat::RecipeError"} <= shown
    assert (
        not {
            "qat::solvers::damped_factor",
            "qat::solvers::GptqSolver::solve",
            "qat::apply_fold",
            "qat::read_schedule",
            "qat::gptq_tensors",
        }
        & shown
    )


@pytest.mark.parametrize("library", LIBRARIES)
def test_their_names_say_the_version(library):
    said = subprocess.run(["readelf", "-d", str(BUILD / library)], capture_output=True, text=True, check=True).stdout
    assert re.search(r"SONAME.*\[(.*)\]", said)[1] == f"{library}.0.1"
