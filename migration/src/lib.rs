//! Schema migrations, one set for SQLite and PostgreSQL.
