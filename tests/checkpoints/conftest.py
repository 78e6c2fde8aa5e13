"""Makes recipes of this folder and of the networks' importable from its tests."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "networks")]
