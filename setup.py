"""Finds torch and calls CMake. CMakeLists.txt is the only description of the build."""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Configures, builds and installs the native libraries beside the Python files."""

    def build_extension(self, extension: Extension) -> None:
        try:
            import torch
        except ImportError:
            sys.exit(
                "torchqat builds against the torch of your environment, which has none: install torch>=2.11, "
                "then run pip install --no-build-isolation on torchqat."
            )
        package = Path(self.get_ext_fullpath(extension.name)).resolve().parent
        build = Path(os.environ.get("TORCHQAT_BUILD_DIR", ROOT / "build" / "native")).resolve()
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        configure = [
            f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_INSTALL_PREFIX={package}",
            "-DCMAKE_BUILD_TYPE=Release",
            *os.environ.get("TORCHQAT_CMAKE_ARGS", "").split(),
        ]
        for command in (
            ["cmake", "-S", str(ROOT), "-B", str(build), *configure],
            ["cmake", "--build", str(build), "--parallel", jobs],
            ["cmake", "--install", str(build), "--component", "python"],
        ):
            if subprocess.run(command).returncode != 0:
                sys.exit(f"torchqat could not be built; the reason stands above, from: {' '.join(command[:2])}")

    def copy_extensions_to_source(self) -> None:
        """Editable installs: setuptools copies the extension beside the sources, but not its libraries."""
        super().copy_extensions_to_source()
        built = Path(self.build_lib) / "torchqat" / "lib"
        beside = ROOT / "python" / "torchqat" / "lib"
        shutil.rmtree(beside, ignore_errors=True)  # those of another version
        shutil.copytree(built, beside)


class ManylinuxWheel(bdist_wheel):
    """Says which systems and which torch the wheel is for.

    Systems are those whose C library is as new as that of the machine it is built on (make wheels asks auditwheel for the
    least). Kernels are chosen at run time, so any x86-64 or aarch64 processor will do. Of torch it is the minor version that
    the libraries are compiled against, which torch keeps no longer than that.
    """

    def egg2dist(self, egginfo_path: str, distinfo_path: str) -> None:
        super().egg2dist(egginfo_path, distinfo_path)
        try:
            import torch
        except ImportError:
            return  # there is nothing to build against either, which build_extension says
        metadata, minor = Path(distinfo_path) / "METADATA", ".".join(torch.__version__.split(".")[:2])
        text, found = re.subn(
            r"(?m)^Requires-Dist: torch>=.*$", f"Requires-Dist: torch=={minor}.*", metadata.read_text("utf-8")
        )
        if found != 1:
            sys.exit(f"{metadata} must require torch once, but does so {found} times.")
        metadata.write_text(text, "utf-8")

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, system = super().get_tag()
        library, version = platform.libc_ver()
        if system.startswith("linux_") and library == "glibc":
            system = f"manylinux_{version.replace('.', '_')}_{system.removeprefix('linux_')}"
        return python, abi, system


setup(
    ext_modules=[Extension("torchqat._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": ManylinuxWheel},
)
