"""CPU of one small message on each way, beside the peers, in turn: ``python benchmarks/cpu.py [ROUNDS]``."""

import statistics
import sys
import time

import measure
from page import Figure, Row, report

BATCH = 200  # messages over LMTP in a round: the service's CPU is counted in ticks of 10 ms
PIPE, LMTP = "CPU per message, pipe with `--service`", "CPU per message, client and service side, LMTP"
FIGURES = (  # and which two of the ways it compares
    (Figure(f"{PIPE} / bare `python3 -I -c pass`", "at most", 1.5), "handover", "bare"),
    (Figure(f"{PIPE} / Odoo's script", "at most", 0.35), "handover", "odoo"),
    (Figure('CPU per message, pipe alone / `python3 -c "import requests"`', "at most", 1.2), "pipe", "requests"),
    (Figure(f"{LMTP} / Odoo's script", "at most", 0.06), "lmtp", "odoo"),
    (Figure("CPU per message, pipe alone / Odoo's script"), "pipe", "odoo"),
    (Figure("CPU per message, `rt-mailgate` / Odoo's script"), "rt", "odoo"),
    (Figure("CPU per message, `curl` / Odoo's script"), "curl", "odoo"),
)


def main(rounds: int = 20) -> int:
    """Take every way in each round and report the medians of the ratios, round by round."""
    with measure.stage() as stage, stage.service() as service:
        small = measure.message_file(stage.folder, measure.SMALL)
        commands: dict[str, measure.Command] = {
            "bare": [stage.python, "-I", "-c", "pass"],
            "requests": [stage.python, "-c", "import requests"],
            "pipe": stage.pipe(),
            "handover": stage.pipe("--service", service.address),
        }
        missing = {}
        for name, peer in {"odoo": stage.odoo_script, "rt": stage.rt_mailgate, "curl": stage.curl}.items():
            try:
                commands[name] = peer()
            except measure.Missing as reason:
                missing[name] = str(reason)
        client = measure.Client(service.address)

        def lmtp() -> float:
            messages = [measure.message(measure.SMALL) for _ in range(BATCH)]
            before = time.process_time() + service.cpu()
            for message in messages:
                client.deliver(message)
            return (time.process_time() + service.cpu() - before) / BATCH

        def costs() -> dict[str, float]:
            return {name: measure.run(command, small).cpu for name, command in commands.items()} | {"lmtp": lmtp()}

        costs()  # for the files that Python compiles
        found = [costs() for _ in range(rounds)]

    def row(figure: Figure, one: str, other: str) -> Row:
        for name in (one, other):
            if name in missing:
                return figure.skipped(missing[name])
        ratio = statistics.median(cost[one] / cost[other] for cost in found)
        mine, its = (statistics.median(cost[name] for cost in found) * 1000 for name in (one, other))
        return figure.row(ratio, f"{mine:.1f} ms / {its:.1f} ms")

    return report(*(row(*figure) for figure in FIGURES))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
