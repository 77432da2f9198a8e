"""CPU of one delivery beside that of a bare ``import requests``, in turn: ``python benchmarks/start.py [RUNS]``."""

import statistics
import sys
import tempfile

import measure

LIMIT = 1.2  # times the CPU of "import requests"


def main(runs: int = 25) -> int:
    """Print both and the median of the ratios, pair by pair; the exit status is 1 when that is over the limit."""
    bare = [sys.executable, "-c", "import requests"]
    with tempfile.TemporaryDirectory() as folder, measure.sink() as port, measure.gateway(port) as ours:
        small = measure.message(folder, 4 * 2**10)
        pairs = [(measure.run(ours, small).cpu, measure.run(bare, small).cpu) for _ in range(runs + 1)][1:]
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(one / other for one, other in pairs)
    print(f"one delivery     {mine * 1000:6.1f} ms CPU (median of {runs})")
    print(f"import requests  {theirs * 1000:6.1f} ms CPU")
    print(f"ratio            {ratio:6.2f}   at most {LIMIT}")
    return int(ratio > LIMIT)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
