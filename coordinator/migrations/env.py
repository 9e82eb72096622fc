"""Alembic runs this: migrations over the connection that `coordinator.postgresql` gives."""

from alembic import context

from coordinator.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
