"""One module a schema, each leading from the schema before it."""
