"""One small closed loop through a held-out world, walked once."""

import pytest
import tiny

from worker.engine import Engine
from worker.eval.protocols import Loop, Walk, make_loop
from worker.eval.revisit import run_methods
from worker.scenes.scene import HELD_OUT_SEED


@pytest.fixture(scope="session")
def engine() -> Engine:
    return tiny.engine()


@pytest.fixture(scope="session")
def loop(engine: Engine) -> Loop:
    return make_loop(HELD_OUT_SEED + 3, "orbit", 12, engine)


@pytest.fixture(scope="session")
def walks(engine: Engine, loop: Loop) -> dict[str, Walk]:
    """Every method under every protocol, by `protocol.method`."""
    return dict(run_methods(engine, loop, 4))
