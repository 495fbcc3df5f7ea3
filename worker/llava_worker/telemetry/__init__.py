"""OpenTelemetry spans of jobs and the timeline of engine steps."""
