"""Fixtures: Helm, and the objects of each set of values, which are rendered once."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from tests.deploy.helm import Helm, HelmUnavailableError, Manifest, install_helm
from tests.deploy.value_sets import VALUE_SETS


@pytest.fixture(scope="session")
def helm() -> Helm:
    try:
        return install_helm()
    except HelmUnavailableError as error:
        pytest.skip(str(error))


Rendered = Callable[[str], list[Manifest]]


@pytest.fixture(scope="session")
def rendered(helm: Helm) -> Rendered:
    """``rendered(name)`` returns the objects for the values ``VALUE_SETS[name]``."""
    return functools.cache(lambda name: helm.render(VALUE_SETS[name]))
