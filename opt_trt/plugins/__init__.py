"""How an operation is computed: plugins offer tactics, a build checks and times them, an engine keeps the winners."""
