"""What is computed: the OPT decoder in terms of `ops`, as the three programs a session loops over."""
