# SPDX-License-Identifier: Apache-2.0
# Copyright The Tidemill authors
"""The benchmark is no part of the distribution: it is imported from the working copy, however pytest was started."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
