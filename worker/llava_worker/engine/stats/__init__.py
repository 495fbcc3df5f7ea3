"""Engine counters and step traces."""
