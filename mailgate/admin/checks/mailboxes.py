"""Of `check`: the mailboxes, each tried as mail-gateway-mailboxes check does."""

import os
from collections.abc import Iterable

from mailgate.admin.checks import Check, Finding, Site, bad, good, unknown
from mailgate.outcome import Ended


def _mailboxes(site: Site) -> Iterable[Finding]:
    path = site.settings.mailboxes
    if not os.path.exists(path):
        return
    try:
        from mailgate.mailboxes import check, config  # and with it IMAPClient, which may be in a venv of its own
    except ImportError as error:
        yield unknown(f"Mailboxes: this Python has no package {error.name}; mail-gateway-mailboxes check tries them.")
        return
    try:
        found = config.read(path)
    except Ended as ended:
        yield bad(f"{ended.verdict.cause}.", "Mend the file: docs/mailboxes.md.")
        return
    for mailbox in found.mailboxes:
        for finding in check.findings(mailbox, found.folder, site.settings):
            sentence = f"Mailbox {finding.mailbox}: {finding.text}."
            yield good(sentence) if finding.is_good else bad(sentence, finding.todo)


CHECKS = {"mailboxes": Check(_mailboxes)}
