"""What computes: the device of a run, its threads and arithmetic, and the memory that is free."""

import torch

from engine.ranks import Ranks
from irnn_cuda import irnn, require_cupy
from settings import Settings, UserError, format_count
from system import machine

INSTALL_ADVICE = "`pip install -r requirements-cuda.txt` installs what it needs"
# What torch on a CPU, and torch and CuPy on a GPU, say when memory runs out.
OUT_OF_MEMORY = (
    "DefaultCPUAllocator", "out of memory", "cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY"
)  # fmt: skip


def prepare_device(settings: Settings, ranks: Ranks) -> torch.device:
    """Choose the device, set torch up by the settings, and meet the other ranks.

    Raises:
        UserError: see choose_device.
    """
    device = choose_device(settings.device, settings.precision, ranks.local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ranks.is_distributed:  # torchrun sets OMP_NUM_THREADS to 1 where it is not set
        num_threads = max(1, machine.count_cores() // ranks.local_size)
    else:  # torch respects OMP_NUM_THREADS, but not the quota of a container
        num_threads = min(torch.get_num_threads(), machine.count_cores())
    torch.set_num_threads(settings.num_threads or num_threads)
    # Off by default: its 10-bit products would change the metrics.
    torch.backends.cudnn.allow_tf32 = settings.precision == "tf32"
    ranks.join(device)
    return device


def choose_device(name: str, precision: str, local_rank: int = 0) -> torch.device:
    """The device of that name; of several GPUs, the one of this rank on this machine.

    Raises:
        UserError: it does not exist, cannot compute in that precision, or cannot run the IRNN.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        if precision == "tf32":
            raise UserError("--precision: tf32 needs a GPU; expected fp32 or bf16")
        return torch.device(name)
    if not torch.cuda.is_available():
        build = torch.version.cuda
        reason = f"torch {torch.__version__} finds no GPU" if build else "torch is a CPU build"
        raise UserError(f"--device: cuda asked for, but {reason}; expected auto or cpu")
    device, count = torch.device("cuda", local_rank), torch.cuda.device_count()
    if local_rank >= count > 0:
        raise UserError(
            f"--device: no GPU {local_rank} on this machine, it has {count}; expected "
            "--nproc-per-node of at most as many"
        )
    try:
        if torch.version.hip is None:
            require_cupy()
        _run_irnn(device)
    except ImportError as error:
        raise UserError(f"--device: {error}; or choose --device cpu") from None
    except Exception as error:  # torch, CuPy, its compiler and the driver have their own classes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:150]
        advice = "update the NVIDIA driver" if "driver" in reason.lower() else INSTALL_ADVICE
        raise UserError(
            f"--device: the IRNN does not run on GPU {local_rank}: {reason}; {advice}, or choose "
            "--device cpu"
        ) from None
    return device


def _run_irnn(device: torch.device) -> None:
    """Run the IRNN forward and backward on one pixel: what it lacks is reported before any work."""
    x = torch.ones(1, 1, 1, 1, device=device, requires_grad=True)
    weight, bias = torch.ones(2, 4, 1, device=device)
    irnn(x, weight, bias).sum().backward()
    torch.cuda.synchronize(device)


def count_workers(settings: Settings, device: torch.device, ranks: Ranks) -> int:
    """Processes of each rank that load images: --num-workers, or as many as the device needs."""
    if settings.num_workers >= 0:
        return settings.num_workers
    # Two load some 550 pairs of 256x256 a second: enough for a CPU, and hardly for a GPU.
    cores = machine.count_cores() // ranks.local_size
    return 2 if device.type == "cpu" else max(2, min(4, cores))


def describe_device(device: torch.device, ranks: Ranks) -> str:
    """The device in words, for people."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        threads = format_count(torch.get_num_threads(), "thread")
        name = f"{machine.processor_name()}, {threads}"
    return f"{ranks.world_size} ranks, each on {name}" if ranks.is_distributed else name


def free_memory(device: torch.device, sharing: int = 1) -> int:
    """Bytes that this process can still take on the device.

    Args:
        sharing: processes of this machine that use its memory at the same time.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return machine.free_memory() // sharing


def peak_memory(device: torch.device) -> float:
    """MiB that this process has used at most: of GPU memory if it computes on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return machine.peak_memory()


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on the CPU or on a GPU."""
    classes = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, classes) or any(words in str(error) for words in OUT_OF_MEMORY)
