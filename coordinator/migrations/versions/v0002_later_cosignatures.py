"""A witness's later cosignatures of the same checkpoint: a log where nothing is said is still watched."""

from collections.abc import Sequence

from alembic import op
from sqlalchemy import BigInteger, Column, Text

revision = "0002"
down_revision: str | None = "0001"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    """Make the table and what guards it."""
    op.create_table(
        "later_cosignatures",
        Column("tree_size", BigInteger, primary_key=True, autoincrement=False),
        Column("name", Text, primary_key=True),
        Column("cosigned_at", BigInteger, primary_key=True, autoincrement=False),
        Column("line", Text, nullable=False),
    )
    op.execute(
        "CREATE TRIGGER later_cosignatures_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON later_cosignatures "
        "FOR EACH STATEMENT EXECUTE FUNCTION concord_append_only()"
    )


def downgrade() -> None:
    """There is no way back: what witnesses said is not forgotten."""
    raise NotImplementedError("a registry is not taken apart; restore the database from before instead")
