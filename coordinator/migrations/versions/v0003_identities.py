"""Since when a certificate is there and under which root, and what auditors read."""

from collections.abc import Sequence

from alembic import op
from sqlalchemy import BigInteger, Column, Double, Text

revision = "0003"
down_revision: str | None = "0002"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    """Add columns and the table. Certificates from before were made by an authority that is no more."""
    op.add_column("certificates", Column("issued_at", Double, nullable=False, server_default="0"))
    op.add_column("certificates", Column("root", Text, nullable=False, server_default=""))
    op.create_table(
        "reads",
        Column("party", Text, nullable=False),
        Column("method", Text, nullable=False),
        Column("day", Text, nullable=False),
        Column("calls", BigInteger, nullable=False),
        Column("written_at", Double, nullable=False),
    )


def downgrade() -> None:
    """There is no way back."""
    raise NotImplementedError("a registry is not taken apart; restore the database from before instead")
