"""What the soak's account makes of a journal that says the same as the database, and of one that does not."""

from collections import Counter

import pytest
from support.accounts import DISAGREE, UNTOLD, Row, difference_of, without
from support.trials import Mail, ending_of

INFO, JOBS = "info@example.com", "jobs@example.com"


@pytest.mark.parametrize(
    ("rows", "found", "difference"),
    [
        ([Row("DELIVERED", (INFO,), "")], {"info": 1}, ""),
        ([Row("KNOWN", ("catchall@example.com",), "")], {"info": 1}, ""),
        ([Row("DELIVERED", (INFO, JOBS), "")], {"info": 1, "jobs": 1}, ""),
        ([Row("DELIVERED", (INFO,), ""), Row("KNOWN", (JOBS,), "")], {"info": 1, "jobs": 1}, ""),
        ([Row("UNKNOWN_RECIPIENT", (), "")], {"bounce": 1}, ""),
        ([Row("DELIVERED", (INFO,), ""), Row("HELD", (JOBS,), "/held/1.eml")], {"info": 1, "held": 1}, ""),
        # one copy was held, and another delivered later
        ([Row("KNOWN", (INFO,), "/held/1.eml")], {"info": 1, "held": 1}, ""),
        ([Row("ACCEPTED", (INFO,), "/held/1.eml")], {"info": 1, "held": 1}, ""),
        # lost, doubled, or served for somebody else
        ([Row("DELIVERED", (INFO,), "")], {}, DISAGREE),
        ([Row("DELIVERED", (INFO,), "")], {"info": 2}, DISAGREE),
        ([Row("DELIVERED", (INFO,), "")], {"info": 1, "jobs": 1}, DISAGREE),
        ([Row("KNOWN", (INFO,), ""), Row("KNOWN", (JOBS,), "")], {"info": 1}, DISAGREE),
        ([Row("DELIVERED", (INFO, JOBS), ""), Row("DELIVERED", (JOBS,), "")], {"info": 1, "jobs": 1}, DISAGREE),
        ([Row("DELIVERED", (INFO,), "")], {"bounce": 1}, DISAGREE),
        ([Row("UNKNOWN_RECIPIENT", (), "")], {"info": 1}, DISAGREE),
        ([Row("HELD", (INFO,), "/held/1.eml")], {"info": 1}, DISAGREE),
        ([], {"info": 1}, DISAGREE),
        # a call that may run yet, or whose end could not be noted
        ([Row("", (INFO,), "")], {"info": 1}, UNTOLD),
        ([Row("", (INFO,), "")], {}, UNTOLD),
        ([Row("DATABASE_DOWN", (), "")], {}, UNTOLD),
        ([Row("", (INFO,), "")], {"info": 2}, DISAGREE),
        ([Row("", (INFO,), "")], {"jobs": 1}, DISAGREE),
    ],
)
def test_the_journal_and_the_outside_agree_or_not(rows: list[Row], found: dict[str, int], difference: str) -> None:
    assert difference_of(rows, Counter(found), is_queued=False) == difference


def test_of_what_is_queued_the_journal_need_not_know_the_end() -> None:
    assert difference_of([Row("", (INFO,), "")], Counter(), is_queued=True) == ""


@pytest.mark.parametrize(
    ("mail", "named", "found", "ending"),
    [
        (Mail(), "To: info@example.com", {"held": 1}, "held"),
        (Mail(records=("info", "jobs")), "Delivered-To: <jobs@example.com>", {"info": 1, "held": 1}, "held"),
        (Mail(records=("info", "jobs")), "Delivered-To: <jobs@example.com>", {"held": 1}, "partly delivered"),
        (Mail(records=("info",)), "To: catchall@example.com", {"held": 1}, "held"),
        (Mail(records=(), bounces=1), "Delivered-To: <nobody@example.com>", {"held": 1}, "held"),
        (Mail(), "To: info@example.com", {"info": 1, "held": 1}, "doubled"),
        (Mail(copies=2), "To: info@example.com", {"info": 1, "held": 1}, "held"),
        (Mail(copies=2), "To: info@example.com", {"held": 1}, "held"),
        (Mail(copies=2), "To: info@example.com", {"info": 2, "held": 1}, "doubled"),
    ],
)
def test_of_what_is_held_there_is_no_record(mail: Mail, named: str, found: dict[str, int], ending: str) -> None:
    held = [f"{named}\nX-Served-To: info@example.com\n\nwords\n".encode()]
    made = Counter(found) - Counter(held=9)
    assert ending_of(without(mail, held, made.elements(), mail.copies), Counter(found), exact=True) == ending
