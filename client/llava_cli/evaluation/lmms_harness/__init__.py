"""The programs that run lmms-eval, in an environment that has lmms-eval but not this project.

Modules import lmms-eval and its dependencies only in functions. They import nothing else of the project, and
each other with relative imports, because there the package is not part of ``llava_cli``.
"""
