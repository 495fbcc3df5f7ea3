"""The messages: jobs, events, heartbeats and commands."""
