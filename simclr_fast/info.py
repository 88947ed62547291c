"""The command `info`: versions, what was built with what, which backend serves which device, and why not."""

import dataclasses
import platform
from importlib import metadata

import torch

import simclr_fast
from simclr_fast import _extension, augmentation, losses  # noqa: F401  the last two describe their ops
from simclr_fast.backends import BACKENDS, described, why_not

OPS = ("ntxent_fwd", "similarity_fwd", "augment")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def report() -> str:
    """The text that the command prints."""
    build = _extension.build_info()
    lines = [
        f"simclr_fast  {simclr_fast.__version__}",
        f"python       {platform.python_version()} on {platform.system()} {platform.machine()}",
        f"torch        {torch.__version__} (CUDA {torch.version.cuda or 'none'})",
        f"triton       {_version('triton')}",
        f"torchvision  {_version('torchvision')}",
        f"torchcodec   {_version('torchcodec')}",
        "",
    ]
    if build:
        cuda = f"CUDA {build['cuda']} for {build['cuda_archs']}" if build["cuda"] else "no CUDA kernels"
        lines += [
            f"extension    built with {build['compiler']} against torch {build['built_with_torch']}, {cuda}",
            f"             CPU instruction set in use: {build['cpu_isa']}",
        ]
    else:
        lines += [f"extension    missing: {_extension.missing_because}"]
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
        names = ", ".join(torch.cuda.get_device_name(device) for device in devices[1:])
        lines += [f"GPUs         {names}"]
    else:
        lines += ["GPUs         none usable (torch.cuda.is_available() is False)"]
    for device in devices:
        lines += ["", f"{device}:"]
        for op in OPS:
            for backend in BACKENDS:
                reason = why_not(backend, op, device)
                lines += [f"  {described(op).called:22}{backend:11}{'serves' if reason is None else 'no: ' + reason}"]
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class InfoOptions:
    """Versions, what was built with what, which backend serves which device, and why not."""


def info(_: InfoOptions) -> None:
    """Print the report."""
    print(report())
