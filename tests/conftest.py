"""Settings for all tests, made before torch is imported."""

import os

# Tests compare to the last bit, and sums in another order differ there; small models gain nothing from threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
