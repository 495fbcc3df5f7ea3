"""Messages between controllers and workers: jobs, events, heartbeats and commands. Independent of Redis."""
