"""The four-directional IRNN operator: definition, kernels and dispatch. See README.md."""

from .cuda import require_cupy
from .op import irnn
from .reference import irnn_reference

__all__ = ["irnn", "irnn_reference", "require_cupy"]
