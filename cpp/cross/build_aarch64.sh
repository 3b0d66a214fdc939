#!/bin/sh
# Builds libawp_edge_ops.so for Arm Linux and strips it: cpp/cross/build_aarch64.sh [BUILD_DIR [CMAKE_OPTION...]]
# With -DAWP_BUILD_TESTS=ON the kernels' tests are built too: ctest --test-dir BUILD_DIR runs them under qemu-user.
set -e
root=$(cd "$(dirname "$0")/../.." && pwd)
build=${1:-$root/build/aarch64}
[ $# -gt 0 ] && shift
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/pyproject.toml")
cmake -S "$root" -B "$build" -DCMAKE_TOOLCHAIN_FILE="$root/cpp/cross/aarch64.cmake" -DAWP_BUILD_CORE=OFF \
  -DAWP_BUILD_PYTHON=OFF -DAWP_VERSION="$version" "$@"
cmake --build "$build" -j 2
aarch64-linux-gnu-strip "$build/cpp/libawp_edge_ops.so"
ls -l "$build/cpp/libawp_edge_ops.so"
