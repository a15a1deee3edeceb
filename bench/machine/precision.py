"""The precisions in which a device multiplies matrices."""

from __future__ import annotations

import torch

from tensorbench.methods.torch_internals import multiplies_bf16


def computes_bf16(device: str = "cpu") -> bool:
    """Whether a device multiplies bfloat16 in hardware.

    True for processors with avx512_bf16, AMX or Arm's bf16, for NVIDIA GPUs from compute capability 8, and
    for all AMD GPUs that torch supports. Also true for "cuda" on a machine without a GPU, so that it can plan
    for another machine.
    """
    if device.startswith("cuda"):
        if torch.version.hip is not None or not torch.cuda.is_available():
            return True
        # Asking for the properties creates no CUDA context, unlike making the device the current one.
        return torch.cuda.get_device_capability(device)[0] >= 8
    return multiplies_bf16()


def unsupported(precision: str, device: str) -> str:
    """Returns a message if a device cannot train in a recipe's precision. Empty if it can.

    Processors are accepted for bf16 even if they have to emulate it.
    """
    if precision == "tf32" and (torch.version.hip is not None or not device.startswith("cuda")):
        return "training.precision: tf32 is a precision of NVIDIA GPUs; accepted here: auto, fp32 and bf16"
    if precision in ("tf32", "bf16") and device.startswith("cuda") and not computes_bf16(device):
        name = torch.cuda.get_device_name(device)
        return f"training.precision: {name} ({device}) does not compute {precision}; accepted: auto and fp32"
    return ""
