"""The device on which tests of the path of GPUs run: the CPU, or what `scripts/check_cuda.py` names."""

from __future__ import annotations

import os

DEVICE = os.environ.get("SPPDET_TEST_DEVICE", "cpu")
