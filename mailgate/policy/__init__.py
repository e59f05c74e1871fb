"""Pure rules: what is allowed, what is answered."""
