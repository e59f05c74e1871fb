"""One coroutine for each client: the dialogue before login, then the relay."""
