"""What all tests share: hypothesis profiles, backends, instruction sets, the tolerance.

HYPOTHESIS_PROFILE=ci|dev|nightly chooses how many examples run. AWP_REQUIRE_NATIVE=1 turns "the native core is not
built" from a skip into a failure.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import hypothesis
import numpy as np
import pytest

from awp_edge import native

_COMMON = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("ci", derandomize=True, max_examples=50, **_COMMON)
hypothesis.settings.register_profile("dev", max_examples=100, **_COMMON)
hypothesis.settings.register_profile("nightly", max_examples=2500, **_COMMON)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Commands inherit an ignored Ctrl-C from a suite that runs in the background, and tests interrupt them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

BACKENDS = ("numpy", "native")


#: How far the objective of a result may be off, relative to f(0): every backend and instruction set sums products in
#: another order. Nothing else differs.
F_TOLERANCE = {"float32": 1e-6, "float64": 1e-12}


def require_native() -> None:
    """Skip where the native core is not built; fail where AWP_REQUIRE_NATIVE asks for it."""
    if native.available():
        return
    if os.environ.get("AWP_REQUIRE_NATIVE", "") in ("", "0"):
        pytest.skip("the native core is not built")
    pytest.fail("AWP_REQUIRE_NATIVE is set, but the native core is not built")


@pytest.fixture(params=BACKENDS, scope="session")
def backend(request: pytest.FixtureRequest) -> str:
    """Run the test once per backend."""
    if request.param == "native":
        require_native()
    return str(request.param)


@pytest.fixture(scope="module", params=native.available_isas() or ["none"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once per instruction set of this machine."""
    require_native()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWP_ISA", request.param)
        assert native.isa() == request.param
        yield request.param


def assert_same_bits(actual: np.ndarray, expected: np.ndarray, note: object = "") -> None:
    """Fail on any difference in dtype, shape or bits (-0 is not 0)."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    if actual.tobytes() != expected.tobytes():
        where = np.argwhere((actual != expected) | (np.signbit(actual) != np.signbit(expected)))
        raise AssertionError(
            f"{note}: {len(where)} of {actual.size} entries differ, the first at {where[:1].tolist()}"
        )
