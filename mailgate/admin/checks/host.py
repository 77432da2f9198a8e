"""The gateway's host: sizes, the hold folder, the journal, and the service."""

import contextlib
import os
from collections.abc import Iterable

from mailgate import handover, hold, journal, settings
from mailgate.admin.checks import Check, Finding, Site, bad, good, named, unknown, why
from mailgate.outcome import Ended


def _size(site: Site) -> Iterable[Finding]:
    size = site.settings.max_size
    if size > settings.MAX_SIZE:
        yield bad(
            f"MAX_SIZE is {size:,} bytes: in base64 that is more than the 128 MiB that Odoo takes.",
            f"Take MAIL_GATEWAY_MAX_SIZE out: it is {settings.MAX_SIZE:,} then.",
        )
    else:
        yield good(f"The gateway takes mail of up to {size:,} bytes, Odoo of {settings.MAX_SIZE:,}.")


def _hold(site: Site) -> Iterable[Finding]:
    folder = site.settings.hold
    if not folder:
        yield bad(
            "There is no hold folder: mail that the database can't digest is tried again and again.",
            f"Make {settings.HOLD}, the gateway's user's own with mode 0700, or name another in MAIL_GATEWAY_HOLD.",
        )
        return
    there = filter(os.path.lexists, hold.parts(folder))
    wrong = [f"{part} {complaint}" for part in there if (complaint := hold.complaint(part) or _unwritable(part))]
    if wrong:
        yield bad(f"Nothing can be held: {named(wrong)}.", "It must be a folder of the gateway's user, mode 0700.")
    else:
        yield good(f"Mail that the database can't digest is held in {folder}.")


def _unwritable(path: str) -> str:
    can_write = os.access(path, os.W_OK, effective_ids=True)
    return "" if can_write else "can't be written by the gateway's user"


def _journal(site: Site) -> Iterable[Finding]:
    place = site.settings.journal
    if not place:
        yield bad(
            "There is no journal: a mail that is tried again may make a second record, and nothing is known of any.",
            f"Make {settings.JOURNAL}, the gateway's user's own with mode 0700, or name another in "
            "MAIL_GATEWAY_JOURNAL.",
        )
        return
    files = [entry.path for entry in os.scandir(place)] if "://" not in place else []
    foreign = [path for path in files if _unwritable(path)]
    if foreign:
        yield bad(
            f"The journal has files that the gateway's user can't write: {named(foreign)}.", "chown them to that user."
        )
        return
    try:
        list(journal.attempts(site.settings, since=site.now))
        can_write = journal.can_write(site.settings)
    except Ended as ended:
        yield bad(f"The journal can't be used: {why(ended)}.", "Until then all mail waits.")
        return
    if can_write:
        size = f": {sum(map(_bytes, files)) / 2**20:,.1f} MiB" if files else ""
        yield good(f"The journal can be written{size}.")
    else:
        yield bad("The journal can't be written.", "Until then all mail waits: rights, a full disk, a pooler.")


def _bytes(path: str) -> int:
    with contextlib.suppress(OSError):
        return os.stat(path).st_size
    return 0


def _service(site: Site) -> Iterable[Finding]:
    address = site.settings.lmtp
    if os.path.isabs(address) and not os.path.exists(address):
        yield unknown(f"No service at {address}: each mail is delivered by the program itself.")
        return
    reload = "systemctl reload mail-gateway-lmtp"
    version = handover.settings_version(site.arguments.env_file, os.environ)
    try:
        said = handover.said_version(address)
    except OSError as error:
        yield bad(
            f"The service at {address} takes no connection: {error.strerror}.", "systemctl restart mail-gateway-lmtp"
        )
    except handover.Silent:
        yield bad(
            f"The service at {address} does not answer us.", "Its log; MAIL_GATEWAY_CLIENTS may leave our user out."
        )
    else:
        if version and said != version:
            yield bad(
                "The service has read other settings than these, or has not read them since they changed.", reload
            )
        else:
            yield good(f"The service answers at {address}{', with these settings' if version else ''}.")


CHECKS = {
    "size": Check(_size),
    "hold": Check(_hold),
    "journal": Check(_journal),
    "service": Check(_service),
}
