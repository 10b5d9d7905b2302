"""What each command takes and what the two `config.json` files say; standard library only, so `--help` is instant."""
