"""How an operation is computed: plugins offer tactics, `build` checks and times them and bakes the winners in."""
