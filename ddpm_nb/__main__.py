"""The command line, ``ddpm-nb`` or ``python -m ddpm_nb``: what it can do is in :mod:`ddpm_nb.commands`."""

from __future__ import annotations

import sys

from ddpm_nb.commands import main, options, script

__all__ = ["main", "options", "script"]

if __name__ == "__main__":
    sys.exit(script())
