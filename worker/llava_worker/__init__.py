"""The house of the engine: one process that pulls jobs, runs a LLaVA and streams tokens back.

Started by ``python -m llava_worker``; nothing else imports this package.
"""
