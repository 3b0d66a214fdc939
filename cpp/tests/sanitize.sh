#!/bin/sh
# Builds and runs the C++ tests under ASan + UBSan, then under TSan: cpp/tests/sanitize.sh [BUILD_DIR [ISAS]]
set -e
root=$(cd "$(dirname "$0")/../.." && pwd)
build=${1:-$root/build/sanitize}
isas=${2:-base;avx2}
eigen=$(${PYTHON:-python3} -c "import importlib.metadata as m; print(m.distribution('cmeel-eigen').locate_file('.'))" 2>/dev/null || true)
for sanitizer in address,undefined thread; do
  cmake -S "$root" -B "$build/$sanitizer" -DAWP_BUILD_PYTHON=OFF -DAWP_BUILD_TESTS=ON -DAWP_SANITIZE=$sanitizer \
    "-DAWP_ISAS=$isas" "-DCMAKE_PREFIX_PATH=$eigen"
  cmake --build "$build/$sanitizer" -j "$(nproc)"
  ctest --test-dir "$build/$sanitizer" --output-on-failure
done
