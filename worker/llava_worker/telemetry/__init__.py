"""OpenTelemetry spans for jobs, and the timeline of engine steps."""
