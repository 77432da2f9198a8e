"""check: each mailbox is tried as far as it goes without a change, and every finding is said with what to do."""

from datetime import date
from typing import NamedTuple

from mailgate.addresses import is_ours
from mailgate.envelope import Recipient
from mailgate.mailboxes import fetch
from mailgate.mailboxes.box import Kind, Trouble
from mailgate.mailboxes.config import MOVE, Mailbox
from mailgate.mailboxes.imap import Imap
from mailgate.settings import Settings

TODO = {
    Kind.NETWORK: "Look at the server's name and port in the mailboxes file, and at what stands between.",
    Kind.TLS: "If its authority is your own, name that in ca_file. Else the certificate must be renewed.",
    Kind.LOGIN: "Look at login and password_file. Some providers want a password for applications, or oauth.",
    Kind.TOKEN: "mail-gateway-mailboxes authorize NAME gets a new token.",
    Kind.FOLDER: "Look at folder in the mailboxes file: case and separator (INBOX/Odoo, INBOX.Odoo) are the server's.",
    Kind.ANSWER: "See docs/mailboxes.md, and the server's own log.",
    Kind.DISK: "The folder must be there, belong to the user that runs this, and have space.",
    Kind.FAILED: "This is a mistake of this program: please report the line.",
}


class Finding(NamedTuple):
    """What was found of a mailbox, and what to do if that is not good."""

    mailbox: str
    is_good: bool
    text: str
    todo: str = ""


def findings(mailbox: Mailbox, folder: str, settings: Settings) -> list[Finding]:
    """Return what is found of a mailbox. It connects, logs in and looks, and changes nothing."""

    def finding(text: str, todo: str = "") -> Finding:
        return Finding(mailbox.name, not todo, text, todo)

    found = []
    if mailbox.recipient and not mailbox.model and not is_ours(settings.addresses, Recipient(mailbox.recipient)):
        found.append(
            finding(
                f"its recipient {mailbox.recipient} is no address of the database's, as the settings have it",
                "Name an alias as recipient, or a model, so that what no alias takes becomes a record of it.",
            )
        )
    try:
        with fetch.opened(mailbox, folder, keeps=False) as box:
            new = len(box.new())
            found.append(finding(f"{mailbox.server} lets us in; messages: {box.message_count}, new: {new}"))
            if box.since > date.today():
                todo = "Look at since in the mailboxes file, at this machine's clock, and at NAME.json in the folder."
                found.append(finding(f"nothing is taken that came before {box.since}, and that day has not come", todo))
            if isinstance(box, Imap):
                found += [finding(*each) for each in _of_imap(box, mailbox)]
    except Trouble as trouble:
        found.append(finding(f"{trouble.kind.value}: {trouble}", TODO[trouble.kind]))
    return found


def _of_imap(box: Imap, mailbox: Mailbox) -> list[tuple[str, ...]]:
    """Return what there is to say of the server's abilities."""
    found: list[tuple[str, ...]] = []
    if not box.has_keywords:
        text = "the server keeps no keywords: what is new is what nobody has seen"
        found.append((text, "Have nobody read this mailbox by hand: what a person has seen first is not taken."))
    if b"IDLE" not in box.capabilities:
        found.append((f"the server has no IDLE: it is asked every {fetch.POLL_SECONDS:.0f} seconds",))
    for action in (mailbox.done, mailbox.refused):
        if action.verb == MOVE and not box.has_folder(action.folder):
            found.append((f"folder {action.folder} is not there: it is made for the first message",))
    return found
