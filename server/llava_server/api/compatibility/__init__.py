"""Rules for request fields of other servers' APIs. See ``rule.py``."""
