"""The registry: the log, invitations and certificates. The log's tables refuse to be changed, by whomever."""

from collections.abc import Sequence
from typing import Final

from alembic import op
from sqlalchemy import BigInteger, Column, Double, LargeBinary, Text, UniqueConstraint

revision = "0001"
down_revision: str | None = None
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

_LOG: Final = ("entries", "hashes", "checkpoints", "cosignatures")


def upgrade() -> None:
    """Make the tables and what guards them."""
    op.create_table(
        "entries",
        Column("leaf_index", BigInteger, primary_key=True, autoincrement=False),
        Column("note", LargeBinary, nullable=False),
        Column("digest", Text, nullable=False, unique=True),
        Column("record_id", Text, nullable=False, unique=True),
        Column("type", Text, nullable=False),
        Column("party", Text, nullable=False),
        Column("seq", BigInteger, nullable=False),
        UniqueConstraint("party", "seq"),
    )
    op.create_table(
        "hashes",
        Column("position", BigInteger, primary_key=True, autoincrement=False),
        Column("hash", LargeBinary, nullable=False),
    )
    op.create_table(
        "checkpoints",
        Column("tree_size", BigInteger, primary_key=True, autoincrement=False),
        Column("root", LargeBinary, nullable=False),
        Column("note", LargeBinary, nullable=False),
    )
    op.create_table(
        "cosignatures",
        Column("tree_size", BigInteger, primary_key=True, autoincrement=False),
        Column("name", Text, primary_key=True),
        Column("line", Text, nullable=False),
    )
    op.create_table(
        "invitations",
        Column("token_hash", Text, primary_key=True),
        Column("owner", Text, nullable=False),
        Column("expires_at", Double, nullable=False),
        Column("used_at", Double),
        Column("used_by", Text),
    )
    op.create_table(
        "certificates",
        Column("serial", Text, primary_key=True),
        Column("party", Text, nullable=False),
        Column("not_after", Double, nullable=False),
        Column("revoked_at", Double),
    )
    op.execute(
        "CREATE FUNCTION concord_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
    )
    for table in _LOG:
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION concord_append_only()"
        )


def downgrade() -> None:
    """There is no way back: a log is not taken apart."""
    raise NotImplementedError("a registry is not taken apart; restore the database from before instead")
