"""Redis: connection, key names and Lua scripts."""
