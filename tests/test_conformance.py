"""Every registered method against every rule of the conformance suite."""

from __future__ import annotations

import pytest

from shoal.conformance import CHECKS
from shoal.core import methods
from shoal.experiment import method_of


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("slug", list(methods.classes()))
def test_conforms(slug: str, check: str) -> None:
    CHECKS[check](method_of(slug))
