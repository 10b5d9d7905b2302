"""Step a decoder: which sequences take part, where their keys and values lie, which token comes next."""
