"""Where a login goes: routers take a complete login and return a route, or None for "not mine"."""
