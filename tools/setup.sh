#!/usr/bin/env bash
# Sets up everything that the Makefile's targets need: system packages, a virtual environment, torch, and torchqat
# itself, built against that torch. Safe to run again; does only what is missing.
#
#   tools/setup.sh VENV
#
# TORCHQAT_TORCH   requirement for torch when none is there yet; by default the newest release that was tested
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:?usage: tools/setup.sh VENV}
torch=${TORCHQAT_TORCH:-torch>=2.11,<=2.13.0}

say() { printf '%s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

find_python() {
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python3.10; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null || continue
    "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && { echo "$candidate"; return; }
  done
}

# A header or program, and the Debian package that brings it.
missing_packages() {
  command -v g++ >/dev/null || echo g++
  command -v make >/dev/null || echo make
  [ -e /usr/include/yaml-cpp/yaml.h ] || echo libyaml-cpp-dev
  [ -e /usr/include/nlohmann/json.hpp ] || echo nlohmann-json3-dev
  [ -e /usr/include/gtest/gtest.h ] || echo libgtest-dev
  if [ -z "$(find_python)" ]; then
    printf '%s\n' python3 python3-venv python3-dev
  else
    "$(find_python)" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    "$(find_python)" -c 'import sysconfig, os, sys; sys.exit(not os.path.exists(sysconfig.get_paths()["include"] + "/Python.h"))' || echo python3-dev
  fi
}

install_packages() {
  local packages
  packages=$(missing_packages | sort -u | tr '\n' ' ')
  [ -n "${packages// /}" ] || return 0
  command -v apt-get >/dev/null || die "torchqat needs these packages, which apt would bring: $packages"
  local as_root=""
  if [ "$(id -u)" != 0 ]; then
    sudo -n true 2>/dev/null || die "torchqat needs system packages that only root can install: run sudo apt-get install $packages"
    as_root="sudo -n"
  fi
  say "Installing system packages: $packages"
  $as_root apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $packages >/dev/null
}

# CMakeLists.txt asks for 3.22, cmake/cuda.cmake for 3.25.2.
has_cmake() {
  local wanted=3.22
  if command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ]; then wanted=3.25.2; fi
  command -v cmake >/dev/null && printf '%s\n' "$wanted" "$(cmake --version | awk 'NR==1 {print $3}')" | sort -C -V
}

make_venv() {
  [ -x "$venv/bin/python" ] && return
  local python options=""
  python=$(find_python)
  [ -n "$python" ] || die "torchqat needs Python 3.10 or newer, which was not found: install python3."
  # A torch that is there already is used, not replaced.
  "$python" -c 'import torch' 2>/dev/null && options=--system-site-packages
  "$python" -m venv $options "$venv"
}

# torchqat is compiled while what it needs of Python comes over the network.
install_python_packages() {
  local pip=("$venv/bin/python" -m pip --disable-pip-version-check install -q) building built
  "${pip[@]}" "setuptools>=70.1" wheel
  has_cmake || "${pip[@]}" cmake
  "$venv/bin/python" -c 'import torch' 2>/dev/null || "${pip[@]}" "$torch"
  export PATH="$(cd "$venv" && pwd)/bin:$PATH"
  export TORCHQAT_CMAKE_ARGS="-DQAT_BUILD_TESTS=ON ${TORCHQAT_CMAKE_ARGS:-}"
  mkdir -p build
  python setup.py -q build_ext --inplace >build/setup.log 2>&1 &
  building=$!
  python tools/requirements.py test | "${pip[@]}" -r /dev/stdin || { kill "$building"; exit 1; }
  wait "$building" || { cat build/setup.log >&2; exit 1; }
  "${pip[@]}" --no-build-isolation --no-deps -e .
}

install_packages
make_venv
install_python_packages
