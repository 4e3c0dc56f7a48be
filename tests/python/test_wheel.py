"""``pip wheel .``: all that it needs is in it, and it says which systems it is for."""

import platform
import re
import subprocess
import sys
import zipfile
from importlib.util import find_spec

import pytest
import torch
import wheels
from sentences import said


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return wheels.build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    wheels.install(wheel, folder)
    return folder


def test_its_name_says_where_it_runs(wheel):
    version = "_".join(platform.libc_ver()[1].split("."))
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert wheel.name == f"torchqat-0.1.0-{python}-{python}-manylinux_{version}_{platform.machine()}.whl"


def test_it_requires_the_torch_it_was_built_for(wheel):
    """Whatever is installed with it: pip refuses another, or brings this one."""
    (name,) = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".dist-info/METADATA")]
    required = re.findall(r"(?m)^Requires-Dist: (torch[^a-z].*)$", zipfile.ZipFile(wheel).read(name).decode())
    assert required == [f"torch=={'.'.join(torch.__version__.split('.')[:2])}.*"]


def test_auditwheel_names_older_systems_than_the_one_it_was_built_on(wheel):
    """What ``make wheels`` does with it; nothing but torch's libraries is missing in the wheel."""
    if find_spec("auditwheel") is None:
        pytest.skip("auditwheel is not installed: pip install auditwheel")
    done = subprocess.run([sys.executable, "-m", "auditwheel", "show", wheel], capture_output=True, text=True)
    (least,) = re.findall(r'"manylinux_2_(\d+)_', done.stdout.split("constrains")[1])
    assert int(least) <= int(platform.libc_ver()[1].split(".")[1])


def test_it_has_every_module_and_what_they_read(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = wheels.ROOT / "python" / "torchqat"
    for file in [*package.rglob("*.py"), *package.rglob("*.pyi"), *package.rglob("*.html"), package / "py.typed"]:
        assert f"torchqat/{file.relative_to(package)}" in names
    for file in (wheels.ROOT / "recipes").glob("*.yaml"):
        assert zipfile.ZipFile(wheel).read(f"torchqat/recipes/shipped/{file.name}") == file.read_bytes()
    libraries = {name.removeprefix("torchqat/lib/") for name in names if "/lib/" in name}
    yaml = {name for name in libraries if name.startswith("libyaml-cpp.so")}
    assert len(yaml) == 1
    assert libraries - yaml == {"libqat.so.0.1", "libqat_ops.so.0.1"}  # one file each, however often they are linked to


def test_it_works_without_a_compiler(site):
    place, _, codes = wheels.run(site)[:3]
    assert place == str(site / "torchqat" / "__init__.py")
    assert wheels.run(site, TORCHQAT_CPU_CAPABILITY="avx2")[1:3] == ["avx2", codes]
    assert wheels.run(site, TORCHQAT_CPU_CAPABILITY="portable")[1:3] == ["portable", codes]


def test_recipes_go_by_their_names(site):
    program = "import torchqat; recipe = torchqat.load_recipe('int4', {'train.steps': 7}); print(recipe.train.steps)"
    assert wheels.run(site, program=program)[0] == "7"


def test_libraries_are_its_own_or_everybodys(site):
    """Nothing but torch's libraries and those of the system's C and C++ is looked for elsewhere."""
    ours = [site / "torchqat" / "lib" / name for name in ("libqat.so.0.1", "libqat_ops.so.0.1")]
    for library in [*ours, *(site / "torchqat").glob("_C*.so")]:
        printed = subprocess.run(["ldd", library], capture_output=True, text=True, check=True).stdout
        for line in printed.splitlines():
            name = line.split()[0].rpartition("/")[2]
            known = (
                "libtorch",
                "libc10",
                "libc.",
                "libm.",
                "libgcc_s",
                "libstdc++",
                "linux-vdso",
                "ld-linux",
                "libgomp",
            )
            assert name.startswith(known) or str(site) in line, line


def test_another_torch_is_a_sentence(site):
    program = "import torch; torch.__version__ = '2.99.0'\ntry:\n    import torchqat\nexcept ImportError as e: print(e)"
    printed = wheels.run(site, program=program)[0]
    assert said(printed, "build.another-torch", installed="2.99.0")


def test_libraries_that_another_torch_does_not_load_are_the_same_sentence(site, tmp_path):
    """Symbols that it lacks: what the loader says is no sentence, so what was built for is asked of the metadata."""
    program = (
        "import sys, torch; torch.__version__ = '2.99.0'; sys.modules['torchqat._C'] = None\n"
        "try:\n    import torchqat\nexcept ImportError as e: print(e)"
    )
    printed = wheels.run(site, program=program)[0]
    built = ".".join(torch.__version__.split(".")[:2])
    assert said(printed, "build.another-torch", installed="2.99.0", built=built, minor=built)
