"""Figures that studies and reports share: arrays in, matplotlib figures out.

Figures here need no backend. Matplotlib reads MPLBACKEND while it is imported, and the import fails
if this process does not have that backend, such as a notebook's. So it is imported without the
variable, and given the backend afterwards.
"""

import contextlib
import os
import sys

_backend = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
try:
    import matplotlib
finally:
    if _backend is not None:
        os.environ["MPLBACKEND"] = _backend
if _backend:
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = _backend
