"""Peak memory of one delivery, 4 KiB and 50 MiB, beside Odoo's own script: ``python benchmarks/memory.py``."""

import sys

import measure
from page import Figure, report

BEYOND = Figure("peak memory, pipe, MiB that 50 MiB take beyond 4 KiB", "at most", 16)
PEER = Figure("peak memory, 50 MiB message: pipe / Odoo's script", "at most", 0.12)


def main() -> int:
    """Deliver a small and a large message and report the peaks."""
    with measure.stage() as stage:
        small, large = (measure.message_file(stage.folder, size) for size in (measure.SMALL, measure.LARGE))
        lowest, highest = measure.run(stage.pipe(), small).peak, measure.run(stage.pipe(), large).peak
        rows = [BEYOND.row(highest - lowest, f"{highest:.1f} MiB, {lowest:.1f} MiB")]
        try:
            theirs = measure.run(stage.odoo_script(), large).peak
            rows.append(PEER.row(highest / theirs, f"{highest:.1f} MiB / {theirs:.1f} MiB"))
        except measure.Missing as reason:
            rows.append(PEER.skipped(str(reason)))
    return report(*rows)


if __name__ == "__main__":
    sys.exit(main())
