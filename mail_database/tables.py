"""The schema, the same on SQLite and PostgreSQL.

A column or an index that is added here is also added to existing databases (Store.make_tables), so a column must allow
NULL.
"""

from datetime import datetime, timezone
from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData()
Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def now() -> datetime:
    """Return the time in UTC, as it is stored."""
    return datetime.now(timezone.utc).replace(tzinfo=None)


def _table(name: str, *columns: Any) -> sa.Table:
    key = sa.Column("id", Id, primary_key=True, autoincrement=True)
    return sa.Table(name, metadata, key, *columns, sqlite_autoincrement=True)


def _text(name: str, default: str | None = None, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, sa.Text, default=default, **options)


def _flag(name: str, default: bool) -> sa.Column[Any]:
    return sa.Column(name, sa.Boolean, nullable=False, default=default)


def _count(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Integer, nullable=False, default=0)


def _date(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime, nullable=False, default=now)


alias_domains = _table(
    "alias_domains", _text("name", unique=True), _text("catchall", "catchall"), _text("bounce", "bounce")
)
companies = _table("companies", _text("name"), _text("email"), _text("alias_domain"))
aliases = _table(
    "aliases",
    _text("local_part", index=True),
    _text("domain"),
    _text("model"),
    sa.Column("defaults", sa.JSON, default=dict),
    _text("contact", "everyone"),
    _flag("local_part_detection", False),
    sa.Column("thread_id", Id),
    _text("parent_model"),
    sa.Column("parent_id", Id),
    _text("bounced_content"),
    _text("status"),
    sa.Index("aliases_of_model", "model", "id"),
)
partners = _table(
    "partners",
    _text("name"),
    _text("email"),
    _text("email_normalized", "", index=True),
    _flag("active", True),
    _count("bounce_count"),
    _date("created"),
)
users = _table("users", _text("login"), sa.Column("partner_id", Id), _flag("active", True), _flag("internal", True))
records = sa.Table(
    "records",
    metadata,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("id", Id, primary_key=True, autoincrement=False),
    _text("name"),
    _text("email_from"),
    _text("email_normalized", ""),
    sa.Column("partner_id", Id),
    _flag("active", True),
    _count("bounce_count"),
    sa.Column("defaults", sa.JSON, default=dict),
    _date("created"),
    sa.Index("records_of_sender", "model", "email_normalized", "created"),
)
# The words of records and partners (words.py), in the order of their characters, so that a beginning is a range.
words = sa.Table(
    "words",
    metadata,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("word", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), primary_key=True),
    sa.Column("id", Id, primary_key=True, autoincrement=False),
    sqlite_with_rowid=False,
)
counters = sa.Table("counters", metadata, sa.Column("model", sa.Text, primary_key=True), sa.Column("last", Id))
followers = sa.Table(
    "followers",
    metadata,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("id", Id, primary_key=True, autoincrement=False),
    sa.Column("partner_id", Id, primary_key=True, autoincrement=False),
)
messages = _table(
    "messages",
    _text("message_id"),
    sa.Column("message_key", sa.String(64), index=True),  # an index takes no id of any length
    _text("model"),
    sa.Column("thread_id", Id),
    sa.Column("author_id", Id),
    _text("email_from"),
    _text("subject"),
    _text("body", ""),
    _text("kind", "email"),
    _flag("internal_note", False),
    sa.Column("parent_id", Id),
    _date("date"),
    sa.Index("messages_of_thread", "model", "thread_id", "id"),
)
attachments = _table(
    "attachments",
    sa.Column("message", Id, index=True),
    _text("name"),
    _text("mimetype"),
    _count("size"),
    _text("sha1"),
    sa.Column("content", sa.LargeBinary),
    _text("content_id"),  # by which the body names it (cid:)
)
# The messages that came by mail, as they came, in zlib's form (RFC 1950).
originals = sa.Table(
    "originals",
    metadata,
    sa.Column("message", Id, primary_key=True, autoincrement=False),
    sa.Column("content", sa.LargeBinary),
)
notifications = _table(
    "notifications",
    sa.Column("message", Id, index=True),
    sa.Column("partner_id", Id),
    _text("status", "sent"),
    _text("reason"),
    sa.Index("notifications_by_status", "status", "id"),
)
parameters = sa.Table("parameters", metadata, sa.Column("key", sa.Text, primary_key=True), sa.Column("value", sa.Text))
allowed_senders = sa.Table("allowed_senders", metadata, sa.Column("email", sa.Text, primary_key=True))
notices = _table(
    "notices",
    _text("about"),
    _text("address"),  # what was written to
    sa.Column("to", sa.Text, index=True),
    _text("sender"),
    _text("subject"),
    _text("message_id"),
    _text("references"),
    _text("reply_to"),
    _text("body"),
    _text("state", "outgoing", index=True),
    _date("created"),
)
# Messages that were accepted and placed nowhere, as they came, and why; the oldest go (Store.keep_unplaced).
unplaced = _table(
    "unplaced",
    _text("about"),
    _text("reason"),
    _text("sender"),
    _text("subject"),
    _text("message_id"),
    sa.Column("bytes_so_far", sa.BigInteger, index=True),  # of this one and all before it
    sa.Column("date", sa.DateTime, nullable=False, default=now, index=True),
    sa.Column("original", sa.LargeBinary),
)
# The Message-IDs that were accepted, also of what left nothing else behind: a bounce, a refusal, a stopped loop.
deliveries = sa.Table(
    "deliveries", metadata, sa.Column("message_key", sa.String(64), primary_key=True), _date("accepted")
)

# Columns that hold a domain: it is stored in the form of DNS, whichever it is given in.
DOMAINS = {"alias_domains": "name", "aliases": "domain", "companies": "alias_domain"}
