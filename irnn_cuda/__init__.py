"""The four-directional IRNN operator: definition, kernels and dispatch; and a convolution for CPUs.

See README.md.
"""

from .convolution import convolve
from .cuda import require_cupy
from .op import irnn
from .reference import irnn_reference

__all__ = ["convolve", "irnn", "irnn_reference", "require_cupy"]
