"""Match: which recipients are the database's."""

import pytest

from mailgate.addresses import Addresses, choices, match
from mailgate.envelope import Recipient
from mailgate.settings import build

REQUIRED = {"URL": "https://odoo.example.com", "DATABASE": "d", "LOGIN": "2", "PASSWORD": "p"}


def addresses(**variables: str) -> Addresses:
    return build(REQUIRED | variables).addresses


NOTHING = addresses()
DOMAIN = addresses(ALIAS_DOMAINS="example.com, second.example")
ALLOWED = addresses(ALLOWED_DOMAINS="allowed.test")
ALIASES = addresses(
    ALIAS_DOMAINS="example.com", ALIASES="info@example.com,Jobs@Second.example", CATCHALL="catchall,replies"
)
LOCAL = addresses(LOCAL_PARTS="commercial")
LOCAL_AT = addresses(LOCAL_PARTS="commercial", ALLOWED_DOMAINS="allowed.test", ALIAS_DOMAINS="example.com")
BOTH = addresses(ALIASES="info@example.com", LOCAL_PARTS="commercial", ALIAS_DOMAINS="example.com")
PLUS = addresses(ALIASES="info@example.com,a+b@example.com", ALIAS_DOMAINS="example.com", RECIPIENT_DELIMITER="+")
PLUS_DOMAIN = addresses(ALIAS_DOMAINS="example.com", RECIPIENT_DELIMITER="+")
MINUS_LOCAL = addresses(LOCAL_PARTS="commercial", RECIPIENT_DELIMITER="-")


@pytest.mark.parametrize(
    ("known", "address", "expected"),
    [
        # no rule at all: the database decides
        (NOTHING, "anybody@anywhere.test", "anybody@anywhere.test"),
        (NOTHING, "no-domain", "no-domain"),
        # the database's domains, and no aliases named
        (DOMAIN, "anybody@example.com", "anybody@example.com"),
        (DOMAIN, "Anybody@SECOND.Example", "Anybody@SECOND.Example"),
        (DOMAIN, "<anybody@example.com>", "anybody@example.com"),
        (DOMAIN, "anybody@sub.example.com", ""),
        (DOMAIN, "anybody@notexample.com", ""),
        (DOMAIN, "anybody@example.com.", ""),
        (DOMAIN, "anybody", ""),
        (DOMAIN, "example.com", ""),
        (DOMAIN, "", ""),
        (DOMAIN, "anybody@example.com\nBcc: x@example.com", ""),
        (DOMAIN, "any\0body@example.com", ""),
        (DOMAIN, "a@evil.test@example.com", '"a@evil.test"@example.com'),
        (DOMAIN, "a b@example.com", '"a b"@example.com'),
        (DOMAIN, '"a b"@example.com', '"a b"@example.com'),
        (ALLOWED, "anybody@allowed.test", "anybody@allowed.test"),
        (ALLOWED, "anybody@example.com", ""),
        # aliases by their full addresses
        (ALIASES, "INFO@example.COM", "INFO@example.COM"),
        (ALIASES, '"info"@example.com', "info@example.com"),
        (ALIASES, "jobs@second.example", "jobs@second.example"),
        (ALIASES, "info@second.example", ""),
        (ALIASES, "nobody@example.com", ""),
        (ALIASES, "info+tag@example.com", ""),
        (ALIASES, "info", ""),
        # the catchall and bounce addresses belong to the alias domains
        (ALIASES, "catchall@example.com", "catchall@example.com"),
        (ALIASES, "Replies@example.com", "Replies@example.com"),
        (ALIASES, "bounce@example.com", "bounce@example.com"),
        (ALIASES, "catchall@second.example", ""),
        (ALIASES, "bounce@elsewhere.test", ""),
        (LOCAL_AT, "catchall@allowed.test", ""),
        # local-part based detection (the documentation's commercial@)
        (LOCAL, "commercial@anywhere.test", "commercial@anywhere.test"),
        (LOCAL, "COMMERCIAL@anywhere.test", "COMMERCIAL@anywhere.test"),
        (LOCAL, "other@anywhere.test", ""),
        (LOCAL, "commercial", "commercial"),
        (LOCAL_AT, "commercial@allowed.test", "commercial@allowed.test"),
        (LOCAL_AT, "commercial@example.com", "commercial@example.com"),
        (LOCAL_AT, "commercial@anywhere.test", ""),
        (LOCAL_AT, "commercial@sub.allowed.test", ""),
        (LOCAL_AT, "other@allowed.test", ""),
        (BOTH, "commercial@anywhere.test", "commercial@anywhere.test"),
        (BOTH, "info@anywhere.test", ""),
        # extensions
        (PLUS, "info+x@example.com", "info@example.com"),
        (PLUS, "info+x+y@example.com", "info@example.com"),
        (PLUS, "a+b@example.com", "a+b@example.com"),
        (PLUS, "a+c@example.com", ""),
        (PLUS, "+x@example.com", ""),
        (PLUS, "catchall+x@example.com", "catchall@example.com"),
        (PLUS, "info-x@example.com", ""),
        (PLUS_DOMAIN, "info+x@example.com", "info@example.com"),
        (PLUS_DOMAIN, "+x@example.com", "+x@example.com"),
        (MINUS_LOCAL, "commercial-x@anywhere.test", "commercial@anywhere.test"),
    ],
)  # fmt: skip
def test_an_address_matches_as_it_would_in_the_database(known: Addresses, address: str, expected: str) -> None:
    (found,) = match(known, [Recipient(address)])
    assert found.addresses == ((expected,) if expected else ())
    assert bool(found.rule) == bool(expected)


@pytest.mark.parametrize(
    ("known", "recipient", "original", "expected"),
    [
        (ALIASES, "info@example.com", "", "info@example.com"),
        (ALIASES, "odoo@localhost", "info@example.com", "info@example.com"),
        (ALIASES, "info@example.com", "sales@elsewhere.test", "info@example.com"),
        (ALIASES, "odoo@localhost", "sales@elsewhere.test", ""),
        # a rule that names an address settles it
        (ALIASES, "info@example.com", "jobs@second.example", "jobs@second.example"),
        (ALIASES, "catchall@example.com", "info@example.com", "info@example.com"),
        # by their domain alone, the database decides, and first on what the MTA has made of it
        (DOMAIN, "info@example.com", "contact@example.com", "info@example.com contact@example.com"),
        (DOMAIN, "info@example.com", "info@second.example", "info@example.com info@second.example"),
        (DOMAIN, "info@example.com", "INFO@example.com", "info@example.com INFO@example.com"),
        (DOMAIN, "info@example.com", "info@example.com", "info@example.com"),
        (DOMAIN, "info@example.com", "contact@elsewhere.test", "info@example.com"),
        (DOMAIN, "odoo@localhost", "contact@example.com", "contact@example.com"),
        (NOTHING, "odoo@localhost", "contact@example.com", "odoo@localhost contact@example.com"),
        # catchall and bounce, of which an MTA may make everything, come last
        (DOMAIN, "catchall@example.com", "contact@example.com", "contact@example.com catchall@example.com"),
        (DOMAIN, "info@example.com", "catchall@example.com", "catchall@example.com"),
        # Odoo 14's bounce address goes whole, for those who know it no more without its extension
        (DOMAIN, "bounce+7-crm.lead-1@example.com", "", "bounce+7-crm.lead-1@example.com bounce@example.com"),
        (ALIASES, "Bounce+7@Example.com", "", "Bounce+7@Example.com Bounce@Example.com"),
        (PLUS, "bounce+7@example.com", "", "bounce+7@example.com bounce@example.com"),
        (ALIASES, "bounce+7@second.example", "", ""),
        (ALIASES, "bounced+7@example.com", "", ""),
    ],
)
def test_a_recipient_matches_when_it_or_its_original_does(
    known: Addresses, recipient: str, original: str, expected: str
) -> None:
    (found,) = match(known, [Recipient(recipient, original)])
    assert " ".join(found.addresses) == expected


IDN = addresses(ALIAS_DOMAINS="M\u00fcller.example", ALIASES="info@stra\u00dfe.example,jobs@xn--mller-kva.example")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("jobs@m\u00fcller.example", "jobs@xn--mller-kva.example"),
        ("jobs@M\u00dcLLER.EXAMPLE", "jobs@xn--mller-kva.example"),
        ("jobs@mu\u0308ller.example", "jobs@xn--mller-kva.example"),
        ("jobs@xn--mller-kva.example", "jobs@xn--mller-kva.example"),
        ("JOBS@XN--MLLER-KVA.example", "JOBS@XN--MLLER-KVA.example"),
        ("catchall@m\u00fcller.example", "catchall@xn--mller-kva.example"),
        ("info@stra\u00dfe.example", "info@xn--strae-oqa.example"),
        ("jobs@muller.example", ""),
        ("jobs@m\u00fcller.example\u2024test", ""),
        ("jobs@" + "\u00fc" * 1000 + ".example", ""),
    ],
)
def test_the_two_spellings_of_a_domain_are_one(address: str, expected: str) -> None:
    (found,) = match(IDN, [Recipient(address)])
    assert " ".join(found.addresses) == expected


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ("\u0909\u0926\u093e\u0939\u0930\u0923.example", "xn--p1b6ci4b4b3a.example"),  # Devanagari, with vowel signs
        ("\u0e15\u0e31\u0e27\u0e2d\u0e22\u0e48\u0e32\u0e07.example", "xn--72c1a1bt4awk9o.example"),  # Thai
        ("mu\u0308ller.example", "xn--mller-kva.example"),  # as macOS writes it
        ("\u4f8b\u3048\u3002example", "xn--r8jz45g.example"),  # a full stop of Japanese
    ],
)
def test_a_domain_in_letters_of_any_script_is_a_setting(domain: str, expected: str) -> None:
    known = addresses(ALIAS_DOMAINS=domain, ALIASES=f"info@{domain}", LOCAL_PARTS="jobs")
    for address in (f"info@{domain}", f"catchall@{expected}"):
        (found,) = match(known, [Recipient(address)])
        assert found.addresses == (address.partition("@")[0] + "@" + expected,)


def test_every_recipient_has_its_own_answer() -> None:
    recipients = [Recipient("x@y.test"), Recipient("info@example.com"), Recipient("info@example.com")]
    found = match(ALIASES, recipients)
    assert [match.recipient for match in found] == recipients
    assert [match.addresses for match in found] == [(), ("info@example.com",), ("info@example.com",)]


def test_a_choice_has_one_address_for_each_recipient() -> None:
    pairs = [("info@example.com", "a@example.com"), ("jobs@example.com", "a@example.com"), ("x@example.com", "")]
    found = choices(match(DOMAIN, [Recipient(*pair) for pair in pairs]))
    assert found == [
        ["info@example.com", "jobs@example.com", "x@example.com"],
        ["a@example.com", "x@example.com"],
    ]
    assert choices(match(DOMAIN, [Recipient("x@y.test")])) == [[]]
