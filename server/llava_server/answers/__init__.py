"""The shapes of all answers, one noun a module: for the OpenAPI document and for tests.

Nothing is written through them: the writers and routes make plain dicts, and a token costs no validation. A
field that is written and not described here fails ``tests/server/test_answer_shapes.py``.
"""
