"""Plugin of pytest that measures coverage also in the processes that tests start (``make coverage``).

coverage measures each Python process that has its variable, but tests start programs in environments of their own.
"""

from __future__ import annotations

import os
import subprocess
from typing import Any

_VARIABLE = "COVERAGE_PROCESS_CONFIG"  # set by `patch = ["subprocess"]` in pyproject.toml when coverage starts
_start: Any = subprocess.Popen.__init__


def _start_measured(self: subprocess.Popen[Any], *args: Any, env: Any = None, **options: Any) -> None:
    if env is not None and _VARIABLE in os.environ:
        env = {_VARIABLE: os.environ[_VARIABLE], **env}
    _start(self, *args, env=env, **options)


subprocess.Popen.__init__ = _start_measured  # type: ignore[method-assign]
