"""What tests of programs need: a sandbox that works here."""

import pytest

from trainer.errors import SandboxError
from trainer.evaluation.suites.sandbox import check_sandbox

try:
    check_sandbox()
    MISSING = ""
except SandboxError as error:
    MISSING = str(error)
needs_sandbox = pytest.mark.skipif(bool(MISSING), reason=MISSING)
