"""expo-search: find the alpha of an ExPO extrapolation, on one engine that never reloads.

theta(alpha) = theta_aligned + alpha * (theta_aligned - theta_sft)
("Model Extrapolation Expedites Alignment", ACL 2025, equation 2).

The flow is the layout, one module a stage:
study -> alpha -> materialize -> generate -> score -> objective -> store -> report.

Importing this package loads neither torch nor vllm.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("expo-search")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__"]
