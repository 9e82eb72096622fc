"""What owners said of campaigns they were asked: how far they are, before they answer in the log."""

from collections.abc import Sequence

from alembic import op
from sqlalchemy import Column, Double, Text

revision = "0004"
down_revision: str | None = "0003"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "campaign_states",
        Column("campaign_id", Text, primary_key=True),
        Column("party", Text, primary_key=True),
        Column("state", Text, primary_key=True),
        Column("at", Double, nullable=False),
    )


def downgrade() -> None:
    """There is no way back."""
    raise NotImplementedError("a registry is not taken apart; restore the database from before instead")
