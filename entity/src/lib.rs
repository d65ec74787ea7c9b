//! sea-orm entities, one module a table.
