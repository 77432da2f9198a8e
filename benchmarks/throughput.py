"""Messages per second through a real Postfix, as root: ``python benchmarks/throughput.py [ROUNDS]``."""

import contextlib
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator

import measure
from page import Figure, Row, report

sys.path.append(str(measure.ROOT / "tests"))
from support import mta

COUNT = 1500  # messages in the queue; Odoo's script gets a few, for it takes so long
COUNT_SCRIPT = 100
SCRIPT = Figure("messages per second through Postfix: LMTP / a pipe to Odoo's script", "at least", 10)
DISCARD = Figure("messages per second through Postfix: LMTP / LMTP to aiosmtpd that discards", "at least", 0.6)


@contextlib.contextmanager
def postfix() -> Iterator[mta.Postfix]:
    """Run a Postfix that keeps what it gets until it is told. Raises mta.Impossible."""
    server = mta.Postfix(mta.free_port())
    try:
        mta.run("postconf", "-c", server.config, "-e", "smtpd_sender_restrictions=static:HOLD")
        yield server
    finally:
        server.stop()
        server.remove()


def rate(server: mta.Postfix, transport: str, count: int) -> float:
    """Queue so many messages, release them, and return how many leave the queue in a second."""
    mta.run("postconf", "-c", server.config, "-e", f"transport_maps=inline:{{example.com={transport}}}")
    mta.run("postfix", "-c", server.config, "reload")
    envelope = ["-f", "ann@outside.test", "-t", "info@example.com"]
    mta.run("smtp-source", "-s", 4, "-m", count, "-l", measure.SMALL, *envelope, f"127.0.0.1:{server.port}")
    mta.run("postsuper", "-c", server.config, "-H", "ALL")
    server.flush()
    folders = [server.folder / "queue" / name for name in ("incoming", "active", "deferred", "hold")]

    def queued() -> int:
        return sum(len(files) for folder in folders for _, _, files in os.walk(folder))

    assert queued() > count / 2, "too few to measure"
    while (first := queued()) == count:  # until qmgr has begun
        time.sleep(0.01)
    started = time.perf_counter()
    while queued():
        time.sleep(0.03)  # to look takes time from Postfix
    return first / (time.perf_counter() - started)


def main(rounds: int = 3) -> int:
    """Take each way in turn and report the medians of the ratios."""
    lmtp_port = mta.free_port()
    with (
        contextlib.ExitStack() as stack,
        measure.stage(LMTP=f"127.0.0.1:{lmtp_port}") as stage,
        stage.service(),
        measure.server("discard.py") as discard_port,
    ):
        try:
            server = stack.enter_context(postfix())
        except mta.Impossible as reason:
            return report(SCRIPT.skipped(str(reason)), DISCARD.skipped(str(reason)))
        ways = {
            "lmtp": (f"lmtp:inet:127.0.0.1:{lmtp_port}", COUNT),
            "discard": (f"lmtp:inet:127.0.0.1:{discard_port}", COUNT),
        }
        try:
            ways["script"] = (add_script(server, stage), COUNT_SCRIPT)
        except measure.Missing as reason:
            missing = str(reason)
        found = [{name: rate(server, *way) for name, way in ways.items()} for _ in range(rounds)]

    def row(figure: Figure, other: str) -> Row:
        if other not in ways:
            return figure.skipped(missing)
        ratio = statistics.median(rates["lmtp"] / rates[other] for rates in found)
        mine, its = (statistics.median(rates[name] for rates in found) for name in ("lmtp", other))
        return figure.row(ratio, f"{mine:.0f} / {its:.0f}")

    return report(row(SCRIPT, "script"), row(DISCARD, "discard"), is_firm=False)


def add_script(server: mta.Postfix, stage: measure.Stage) -> str:
    """Make a service of Odoo's script, with the system's Python, which Postfix's user may run."""
    _, script, *options = map(str, stage.odoo_script())
    copy = shutil.copy(script, server.folder)
    command = f"odoo unix - n n - - pipe user={mta.USER} argv={mta.PYTHON} {copy} {' '.join(options)}"
    mta.run("postconf", "-c", server.config, "-M", f"odoo/unix={command}")
    return "odoo"


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
