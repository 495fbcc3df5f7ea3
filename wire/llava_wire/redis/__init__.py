"""Redis access: connections, key names and Lua scripts."""
