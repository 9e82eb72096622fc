"""The tables. The log's only grow; the others hold what the log cannot say."""

from collections.abc import Mapping
from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

_Number: Final = BigInteger().with_variant(Integer(), "sqlite")  # SQLite's own row number is an INTEGER

entries = Table(
    "entries",
    metadata,
    Column("leaf_index", _Number, primary_key=True, autoincrement=False),
    Column("note", LargeBinary, nullable=False),
    Column("digest", Text, nullable=False, unique=True),
    Column("record_id", Text, nullable=False, unique=True),
    Column("type", Text, nullable=False),
    Column("party", Text, nullable=False),
    Column("seq", _Number, nullable=False),
    UniqueConstraint("party", "seq"),
)
hashes = Table(
    "hashes",
    metadata,
    Column("position", _Number, primary_key=True, autoincrement=False),
    Column("hash", LargeBinary, nullable=False),
)
checkpoints = Table(
    "checkpoints",
    metadata,
    Column("tree_size", _Number, primary_key=True, autoincrement=False),
    Column("root", LargeBinary, nullable=False),
    Column("note", LargeBinary, nullable=False),
)
cosignatures = Table(
    "cosignatures",
    metadata,
    Column("tree_size", _Number, primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True),
    Column("line", Text, nullable=False),
)
later_cosignatures = Table(
    "later_cosignatures",
    metadata,
    Column("tree_size", _Number, primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True),
    Column("cosigned_at", _Number, primary_key=True, autoincrement=False),
    Column("line", Text, nullable=False),
)
invitations = Table(
    "invitations",
    metadata,
    Column("token_hash", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("used_at", Double),
    Column("used_by", Text),
)
certificates = Table(
    "certificates",
    metadata,
    Column("serial", Text, primary_key=True),
    Column("party", Text, nullable=False),
    Column("not_after", Double, nullable=False),
    Column("revoked_at", Double),
    Column("issued_at", Double, nullable=False),
    Column("root", Text, nullable=False),
)
reads = Table(
    "reads",
    metadata,
    Column("party", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("day", Text, nullable=False),
    Column("calls", _Number, nullable=False),
    Column("written_at", Double, nullable=False),
)
campaign_states = Table(
    "campaign_states",
    metadata,
    Column("campaign_id", Text, primary_key=True),
    Column("party", Text, primary_key=True),
    Column("state", Text, primary_key=True),
    Column("at", Double, nullable=False),
)

APPEND_ONLY: Final = (entries, hashes, checkpoints, cosignatures, later_cosignatures)
CHANGING: Final[Mapping[Table, tuple[str, ...]]] = {
    invitations: ("used_at", "used_by"),
    certificates: ("revoked_at",),
    reads: (),
    campaign_states: (),
}
"""Tables that are no log, and which of their columns change."""
