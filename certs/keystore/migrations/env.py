"""What Alembic runs around the migrations: the connection is its caller's, and so is the commit."""

from __future__ import annotations

from alembic import context

from certs.keystore.migrations import work_of

context.configure(connection=work_of(context.config).connection, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
