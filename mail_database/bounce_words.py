"""The words by which reports are told from other mail: who writes them, what they say, and what other machines say.

All of it is policy as data: lists of words in many languages, matched in the subject and the first lines. They only
ever decide whether an address in a text is guessed at; where a list has a gap, nobody is named.
"""

# ruff: noqa: E501  # lists of words read better unbroken

import re
from collections.abc import Iterable

from mail_database.report import Fields, first, values

FIRST_LINES_CHARACTERS = 1000  # so much counts as a text's first lines

# Local-parts of who reports that mail came back, and what else stands in From there.
DAEMONS = re.compile(
    r"(?:mail(?:er)?[-_.]?daemon|poo?st[-_.]?master|double-bounce|mmdf|mail-?delivery(?:-?subsystem|-?system)?"
    r"|microsoftexchange[0-9a-f]{8,})(?=@|$)",
    re.IGNORECASE,
)
DAEMON_NAMES = re.compile(
    r"mail(?:er)?[- ]?daemon|mail deliver[yi]?\w* (?:sub)?system|mail delivery service|mail administrator|postmaster"
    r"|system administrator|systemadministrator|administrateur syst\u00e8me|amministratore di sistema"
    r"|administrador del sistema|systeembeheerder",
    re.IGNORECASE,
)
# Local-parts of other machines.
MACHINES = re.compile(
    r"(?:no[-_.]?reply|do[-_.]?not[-_.]?reply|nicht[-_.]?antworten|ne[-_.]?pas[-_.]?repondre|bounces?|mailsystem|system"
    r"|notifications?)(?=@|\+|$)",
    re.IGNORECASE,
)
_LOCAL = re.compile(r"<?([^<>@\s]*)(?:@[^<>\s]*)?>?\s*$")  # of the last address of a field
_BEFORE = re.compile(r"^([^<]*)")

# What the subject or the first lines of a report say that tells of no failure, so that any guess would be wrong.
NO_FAILURE = re.compile(
    "|".join((
        r"^Subject:\s*(?:delayed|warning\b|delivery status notification\W+(?:delay|warning))",  # it'll be tried again
        r"\b(?:warning only|only a temporary failure)\b",
        r"^Subject:\s*(?:success|relayed|delivered|delivery status notification\W+(?:success|relay))",
        r"^Subject:\s*(?:auto(?:matic)?[ -]?reply|out of (?:the )?office)",
        r"^Subject:\s*complaint",
        r"^Subject:\s*(?:(?:not )?read|(?:un)?gelesen|nicht gelesen|lu|le\u00eddo|lido|letto|gelezen|l\u00e6st|l\u00e4st|przeczytane|p\u0159e\u010dteno"
        r"|\u043f\u0440\u043e\u0447\u0438\u0442\u0430\u043d\u043e|\u5f00\u5c01|\u958b\u5c01\u6e08\u307f|\u5df2\u8bfb|\u5df2\u8b80)\s*[:\uff1a]",  # read receipts
        r"\b(?:has not yet been deliver|noch nicht (?:zu(?:ge)?stell|aus(?:ge)?liefer)|pas encore (?:pu )?(?:\u00eatre |\u00e9t\u00e9 )?(?:remis|d\u00e9livr|distribu)"
        r"|(?:a\u00fan|todav\u00eda) no (?:se )?(?:ha |pudo )?(?:sido )?entreg|non (?:\u00e8 )?ancora (?:stato )?(?:consegn|recapit)|nog niet (?:af)?(?:geleverd|bezorgd)"
        r"|ainda n\u00e3o (?:foi )?entreg|jeszcze (?:nie )?(?:zosta\u0142\w* )?dostarcz|\u0435\u0449[\u0451\u0435] \u043d\u0435 (?:\u0431\u044b\u043b\w* )?\u0434\u043e\u0441\u0442\u0430\u0432)",
        r"^Subject:\s*(?:verz\u00f6ger|zustellung verz\u00f6gert|retard|retras|ritard|vertraag|op\u00f3\u017ani|"
        r"\u5ef6|\u914d\u4fe1\u9045\u5ef6|\u0437\u0430\u0434\u0435\u0440\u0436)",
    )),
    re.IGNORECASE | re.MULTILINE,
)  # fmt: skip

# A reply code or status of SMTP, or words for "not delivered", in a text.
FAILURE = re.compile(
    "|".join((
        r"\b[45]\.\d{1,3}\.\d{1,3}\b|(?<![\w.,:])5[0-7]\d[ \-]",
        r"undeliver|not (?:be |been )?deliver|unable to deliver|deliver\w* (?:to \S+ )?(?:has |was )?(?:fail|abort|error)",
        r"fail\w* (?:to|delivery|notice|recipient)|failure|failed|returned (?:mail|to sender)|could ?n[o']t (?:be )?(?:send|sen"
        r"t|deliver)|returning|user unknown|unknown (?:user|recipient|address)|no such user|rejected|blocked|error",
        r"unzustellbar|nicht (?:zu(?:ge)?stell|aus(?:ge)?liefer)|zugestellt werden|zustell\w*fehl|fehler",
        r"non (?:d\u00e9livr|remis|distribu)|pas (?:pu |\u00e9t\u00e9 |\u00eatre )*(?:remis|d\u00e9livr|distribu|envoy)|\u00e9chec|erreur",
        r"no (?:se )?(?:ha |pudo |ha podido )*(?:ser )?(?:entrega|enviar)|no entregad|devuelto|fallo|rechazad",
        r"mancat[ao] (?:consegna|recapito)|non (?:\u00e8 stato |\u00e8 |recapit|consegn|possibile)|impossibile (?:consegn|recapit)",
        r"onbestelbaar|niet (?:worden |kunnen worden )?(?:af)?(?:geleverd|bezorgd)|mislukt",
        r"niedostarcz|nie (?:mo\u017cna|mo\u017ce|uda\u0142o|zosta\u0142\w*)[^.\n]{0,30}(?:dostarcz|dor\u0119cz)|zwr\u00f3con",
        r"nedoru\u010d|kunde inte leverer|kunne ikke levere|leverans\w* misslyck|n\u00e3o (?:p\u00f4de |foi )?(?:ser )?entreg|toimitus ep\u00e4onn",
        r"\u043d\u0435 \u0434\u043e\u0441\u0442\u0430\u0432|\u043d\u0435\u0434\u043e\u0441\u0442\u0430\u0432|\u043d\u0435 (?:\u0443\u0434\u0430\u043b\u043e\u0441\u044c|\u043c\u043e\u0436\u0435\u0442)[^.\n]{0,30}\u0434\u043e\u0441\u0442\u0430\u0432",
        r"\u914d\u4fe1\u4e0d\u80fd|\u914d\u4fe1\u3067\u304d|\u9001\u4fe1\u3067\u304d|\u5c4a\u3051\u3089\u308c|\u5b9b\u5148\u4e0d\u660e|\u30a8\u30e9\u30fc|\u5931\u6557|\u9000\u4fe1|\u672a\u9001\u8fbe|\u65e0\u6cd5\u6295\u9012|\u7121\u6cd5\u6295\u905e|\ubc30\ub2ec",
        r"k\u00e9zbes\u00edt|teslim edilem|iletilem|toimitta|nu a (?:putut fi )?livrat|nije (?:mogu\u0107e )?ispor|\u03b4\u03b5\u03bd \u03c0\u03b1\u03c1\u03b1\u03b4|\u043d\u0435 \u0431\u0443\u0432 \u0434\u043e\u0441\u0442",
        r"\uc804\ub2ec\ud560 \uc218 \uc5c6|\u062a\u0639\u0630\u0631|\u0644\u0645 \u064a\u062a\u0645 \u062a\u0633\u0644|\u05dc\u05d0 \u05e0\u05de\u05e1\u05e8|kh\u00f4ng th\u1ec3 g\u1eedi|\u0e44\u0e21\u0e48\u0e2a\u0e32\u0e21\u0e32\u0e23\u0e16\u0e2a\u0e48\u0e07",
    )),
    re.IGNORECASE,
)  # fmt: skip

# Words of absence notes, moved addresses, confirmations, filters that ask or hold: nobody in them has failed.
OTHER = re.compile(
    "|".join((
        r"out of (?:the )?office|on (?:vacation|holiday|leave)|auto(?:matic)?[ -]?repl|abwesen|urlaub|nicht im (?:b\u00fcro|haus)",
        r"absen[tc]|cong\u00e9s|vacances|vacaciones|fuera de la oficina|ferie\b|fuori (?:ufficio|sede)|assente|afwezig|vakantie",
        r"nieobecn|urlop|\u0432 \u043e\u0442\u043f\u0443\u0441\u043a|\u043e\u0442\u0441\u0443\u0442\u0441\u0442\u0432|\u4e0d\u5728|\u4f11\u6687|\u81ea\u52d5\u5fdc\u7b54|frav\u00e6r|fr\u00e5nvaro|aus\u00eancia|f\u00e9rias",
        r"\baway\b|vacation message|szabads\u00e1g|h\u00e1zon k\u00edv\u00fcl|\bloma|poissa|tatil|izinde|ofis d\u0131\u015f\u0131|dovolen|nep\u0159\u00edtom|mimo kancel|concediu|\u03ac\u03b4\u03b5\u03b9\u03b1|\u0432\u0456\u0434\u043f\u0443\u0441\u0442"
        r"|\ubd80\uc7ac|\ud734\uac00|\u4f11\u5047|\u5916\u51fa|\u81ea\u52a8\u56de\u590d|\u81ea\u52d5\u56de\u8986|\u062e\u0627\u0631\u062c \u0627\u0644\u0645\u0643\u062a\u0628|\u05d7\u05d5\u05e4\u05e9",
        r"(?:new|changed?) (?:e-?mail )?address|address (?:has )?changed|has moved|has left|no longer (?:work|with)|write to|(?:neue|ge\u00e4nderte) (?:e-?mail-?)?adresse"
        r"|nouvelle adresse|a quitt\u00e9|nueva direcci\u00f3n|ya no trabaja|nuovo indirizzo|nieuw (?:e-?mail)?adres|nowy adres|\u043d\u043e\u0432\u044b\u0439 \u0430\u0434\u0440\u0435\u0441"
        r"|bitte wenden|ausgeschieden|veuillez (?:\u00e9crire|contacter)",
        r"quarant\w+|cuarentena|kwarantann|\u043a\u0430\u0440\u0430\u043d\u0442\u0438\u043d|\u9694\u96e2|(?:is|was) held|zur\u00fcckgehalten",
        r"ticket|please confirm|awaits? confirmation|best\u00e4tig|confirm(?:er|ez|ar|e)\b|confermare|bevestig|digest|confirm your|(?:to|reply to) (?:confirm|verify)|potwierd|\u043f\u043e\u0434\u0442\u0432\u0435\u0440\u0434",
    )),
    re.IGNORECASE,
)  # fmt: skip


def _senders(header: Fields) -> list[str]:
    return values(header, "from")[:1] or [""]


def is_daemon(header: Fields) -> bool:
    """Tell whether a mail system wrote a message: From is a daemon, postmaster or nobody."""
    sender = _senders(header)[0][:FIRST_LINES_CHARACTERS]
    local_part = _LOCAL.search(sender)
    name = _BEFORE.search(sender)
    return bool(
        not sender.strip()
        or (local_part and (not local_part[1] or DAEMONS.match(local_part[1])))
        or (name and DAEMON_NAMES.search(name[1]))
    )


def is_nobody(header: Fields) -> bool:
    """Tell whether From names no address, as in a bounce, but in a scanner's mail, too."""
    sender = _senders(header)[0].strip()
    return not sender or sender.endswith("<>")


def is_machine(header: Fields) -> bool:
    """Tell whether nobody reads what is answered to a message: From is no-reply or the like, or a daemon."""
    local_part = _LOCAL.search(_senders(header)[0][:FIRST_LINES_CHARACTERS])
    return is_daemon(header) or bool(local_part and MACHINES.match(local_part[1]))


def has_null_sender(header: Fields) -> bool:
    """Tell whether Return-Path says that nobody is to be told."""
    return first(header, "return-path").strip() == "<>"


def says_no_failure(texts: Iterable[str]) -> bool:
    """Tell whether subject or first lines say that mail is delayed, was delivered, or has been answered."""
    return any(NO_FAILURE.search(text[:FIRST_LINES_CHARACTERS]) for text in texts)


def says_failure(texts: Iterable[str]) -> bool:
    """Tell whether subject or text say that mail was not delivered, and nothing else that machines write about."""
    looked_at = [text[: 4 * FIRST_LINES_CHARACTERS] for text in texts]
    return any(map(FAILURE.search, looked_at)) and not any(
        OTHER.search(text[:FIRST_LINES_CHARACTERS]) for text in looked_at
    )
