"""Peak memory of one delivery, 4 KiB and 50 MiB, beside Odoo's own script: ``python benchmarks/memory.py``."""

import sys
import tempfile

import measure

SMALL, LARGE = 4 * 2**10, 50 * 2**20
LIMIT = 16  # MiB that a large message may take beyond a small one


def main() -> int:
    """Print the peaks and their ratio; the exit status is 1 when ours is over the limit."""
    with tempfile.TemporaryDirectory() as folder, measure.sink() as port, measure.gateway(port) as ours:
        small, large = (measure.message(folder, size) for size in (SMALL, LARGE))
        lowest, highest = measure.run(ours, small).peak, measure.run(ours, large).peak
        print(f"mail_gateway.py    4 KiB: {lowest:6.1f} MiB   50 MiB: {highest:6.1f} MiB", end="   ")
        print(f"difference {highest - lowest:.1f} MiB, at most {LIMIT}")
        theirs = measure.peer(port)
        if theirs is None:
            print("odoo-mailgate.py   not measured: its package is not here (make test-odoo fetches it)")
        else:
            peer_lowest, peer_highest = measure.run(theirs, small).peak, measure.run(theirs, large).peak
            print(f"odoo-mailgate.py   4 KiB: {peer_lowest:6.1f} MiB   50 MiB: {peer_highest:6.1f} MiB", end="   ")
            print(f"ratio at 50 MiB {highest / peer_highest:.2f}")
    return int(highest - lowest > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
