"""The OPT decoder in terms of `ops`, as three programs: embedding, layer and head."""
