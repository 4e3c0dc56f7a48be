"""The wheel on processors that this machine has not, emulated by QEMU: with AVX2 but no AVX-512, and with AVX alone,
the least that torch runs on."""

import shutil

import pytest
import wheels

QEMU = shutil.which("qemu-x86_64") or ""
pytestmark = pytest.mark.skipif(not QEMU, reason="qemu-x86_64 is not installed; make test-engines installs it as root")


@pytest.mark.parametrize(("processor", "kernels"), [("Haswell", "avx2"), ("SandyBridge", "portable")])
def test_older_processors(processor, kernels, tmp_path):
    wheels.install(wheels.build(tmp_path / "wheel"), tmp_path / "site")
    _, _, codes = wheels.run(tmp_path / "site")[:3]
    emulated = wheels.run(tmp_path / "site", QEMU, "-cpu", processor)
    assert emulated[1:3] == [kernels, codes]
