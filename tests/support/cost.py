"""What work costs in CPU seconds, and how that grows: machines are noisy, so only ratios are judged."""

import time
from collections.abc import Callable
from typing import Any

STEP = 4  # as much in the larger run as in the smaller one: linear work takes 4 times as long, quadratic work 16 times
MOST = 8  # times as long is still linear
NEGLIGIBLE_SECONDS = 0.02  # work that costs less is not measured: nothing that grows stays below it
ROUNDS = 6


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds that work takes."""
    began = time.process_time()
    work()
    return time.process_time() - began


def grows_linearly(work: Callable[[Any], object], small: Any, large: Any) -> bool:
    """Tell whether ``work`` takes linear time, where ``large`` is STEP times ``small``.

    The least of several runs counts: what disturbs a run only ever makes it longer.
    """
    seconds: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        seconds.append((cpu_seconds(lambda: work(small)), cpu_seconds(lambda: work(large))))
        least, most = (min(column) for column in zip(*seconds, strict=True))
        if most < NEGLIGIBLE_SECONDS or most < MOST * least:
            return True
    return False
