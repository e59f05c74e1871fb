"""Pure decisions over the servers of a pool: which one next, and which ones had better rest."""
