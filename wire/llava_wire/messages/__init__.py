"""Messages between controllers and workers, independent of Redis: jobs, events, heartbeats and commands."""
