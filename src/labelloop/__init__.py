"""labelloop: models make labels; checked labels make models."""

import os

__version__ = "0.1.0"

# Threads that wait sleep, unless the user says otherwise. By default they spin, and beside one other busy process a
# training takes several times as long. This must be set before the first library with threads is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
