"""Messages between controllers and workers: jobs, events, heartbeats, commands. They do not need Redis."""
