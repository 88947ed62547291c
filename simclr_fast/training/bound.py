"""What bounds a profiled run, and the remedy: the rules behind the sentences of --profile."""

import dataclasses
import os
from collections.abc import Callable

import torch

from simclr_fast.backends import resolve_backend
from simclr_fast.config import Config, graph_conflict
from simclr_fast.training.profiled import Profile

# Shares from which on something counts as the bound; below, it costs less than what a remedy could bring.
WAITING = 0.10  # of the step, for data
SATURATED = 0.85  # of the threads' time: threads that are a little too many idle now and then
HAS_CORE = 0.5  # of the busy time: decoding is arithmetic, so a thread that has a core for less is kept from it
IDLE = 0.20  # of the step, the device

PACK = "pack the data set (python -m simclr_fast.data pack; with --format raw nothing is left to decode)"


@dataclasses.dataclass(frozen=True)
class Circumstances:
    """What a remedy depends on.

    config: the options; cores: of this process; slow_ops: that only the reference serves here; processes: of the run.
    """

    config: Config
    on_cuda: bool
    cores: int
    slow_ops: frozenset[str] = frozenset()
    processes: int = 1

    @classmethod
    def here(cls, config: Config, device: torch.device) -> "Circumstances":
        """Those of this process, which shares the machine's cores with the other processes of torchrun."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        slow = (op for op in ("ntxent_fwd", "augment") if resolve_backend("auto", op, device) == "reference")
        local, processes = (int(os.environ.get(name, 1)) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
        return cls(config, device.type == "cuda", max(1, cores // local), frozenset(slow), processes)


Test = Callable[[Profile], bool]
Words = Callable[[Profile, Circumstances], str]


@dataclasses.dataclass(frozen=True)
class Rule:
    """A bound: its name, when it is the one, how the measurement shows it, and the remedy as a whole sentence."""

    bound: str
    applies: Test
    evidence: Words
    remedy: Words


def _waits(profile: Profile) -> bool:
    return profile.waiting_share >= WAITING


def _busy(profile: Profile) -> bool:
    return profile.loading is not None and profile.loading.busy_share >= SATURATED


def _waited(profile: Profile) -> str:
    return f"the step waited {profile.waiting_share:.0%} of its time for {_them(profile)}"


def _them(profile: Profile) -> str:
    return "it" if profile.loading.threads == 1 else "them"


def _threads(profile: Profile) -> str:
    count = profile.loading.threads
    return f"{count} thread was" if count == 1 else f"{count} threads were"


def _costs(*phases: str) -> Words:
    return lambda profile, _: f"it takes {profile.share(*phases):.0%} of the step"


def _largest(*phases: str) -> Test:
    """Whether these phases together take longer than any other part of the step."""

    def applies(profile: Profile) -> bool:
        parts = (("augment",), ("forward", "backward"), ("loss",), ("optimizer",))
        return max(parts, key=lambda names: profile.share(*names)) == phases

    return applies


def _more_threads(circumstances: Circumstances) -> str:
    cores = circumstances.cores
    return f"raise --workers to {cores} (cores: {cores})" if circumstances.config.data.workers < cores else ""


def _decode_elsewhere(circumstances: Circumstances) -> str:
    gpu = circumstances.on_cuda and circumstances.config.data.decode_device == "cpu"
    return "let the GPU decode (--decode-device cuda)" if gpu else ""


def _sentence(*parts: str) -> str:
    """The parts that there are as alternatives."""
    *first, last = [part for part in parts if part]
    text = f"{', '.join(first)}, or {last}" if first else last
    return f"{text[0].upper()}{text[1:]}."


def _decoding_remedy(_: Profile, circumstances: Circumstances) -> str:
    return _sentence(_more_threads(circumstances), PACK, _decode_elsewhere(circumstances))


def _reading_remedy(_: Profile, circumstances: Circumstances) -> str:
    return (
        "Either the files come slowly, or too many threads and programs share the cores "
        f"(cores: {circumstances.cores}). " + _sentence("put the files on a faster disk", PACK)
    )


def _delivery_remedy(_: Profile, circumstances: Circumstances) -> str:
    if circumstances.config.data.decode_device == "cuda":
        return "The GPU decodes and trains in turn. " + _sentence("decode by threads (--decode-device cpu)", PACK)
    smaller = "pack the data set at 256 pixels (python -m simclr_fast.data pack), so that less is moved"
    return _sentence(_more_threads(circumstances), smaller)


def _augment_remedy(_: Profile, circumstances: Circumstances) -> str:
    options = circumstances.config.augment
    if "augment" in circumstances.slow_ops:
        return "The reference does it: python -m simclr_fast.info says why no kernel serves."
    if options.rotate > 0 or options.shear > 0:
        return "Rotation and shear are done after the fused kernel, at its cost again: --rotate 0 --shear 0."
    if options.blur_p > 0:
        return (
            "The blur costs most: lower --blur-p or --size if the recipe allows it; large images cost less packed "
            "at 256 pixels (python -m simclr_fast.data pack)."
        )
    return (
        "Lower --size if the recipe allows it; large images cost less packed at 256 pixels "
        "(python -m simclr_fast.data pack)."
    )


def _model_remedy(_: Profile, circumstances: Circumstances) -> str:
    speed = circumstances.config.speed
    cuda = circumstances.on_cuda
    if not speed.channels_last:
        return "Its convolutions are faster in the layout of --channels-last."
    if cuda and speed.amp_dtype == "float32":
        return "Tensor cores want --amp-dtype bfloat16."
    if cuda and speed.torchcompile in ("off", "aot_eager"):
        return "Compile it: --torchcompile inductor."
    if cuda and speed.torchcompile_mode == "default":
        return "Let the compiler try more kernels: --torchcompile-mode max-autotune."
    if circumstances.config.optimization.micro_batch_size > 0:
        return "--micro-batch-size costs a second forward pass: 0 if the whole batch fits into memory."
    if not cuda and 0 < speed.threads < circumstances.cores:
        return f"It uses {speed.threads} of {circumstances.cores} cores: --threads 0 takes all."
    return "That is its arithmetic: only another --model, a smaller --size, or more and faster devices help."


def _loss_remedy(_: Profile, circumstances: Circumstances) -> str:
    config = circumstances.config
    if "ntxent_fwd" in circumstances.slow_ops:
        return "The reference does it: python -m simclr_fast.info says why no kernel serves."
    if circumstances.on_cuda and config.speed.amp_dtype == "float32":
        return "Tensor cores want --amp-dtype bfloat16."
    return "It grows with the square of the batch and with the embedding: lower --batch-size or --head-dim."


def _host_remedy(profile: Profile, circumstances: Circumstances) -> str:
    config, speed = circumstances.config, circumstances.config.speed
    unprofiled = dataclasses.replace(config, run=dataclasses.replace(config.run, profile=0))
    if profile.loading is None and circumstances.processes == 1 and graph_conflict(unprofiled) is None:
        if speed.cuda_graph == "off":
            return "Let a CUDA graph replay the whole step: --cuda-graph auto."
        return "Without --profile, which looks into the step, a CUDA graph replays it whole: this run needs no more."
    if speed.torchcompile in ("off", "aot_eager"):
        return "Compile the step, which launches fewer kernels: --torchcompile inductor."
    if speed.torchcompile_mode == "default":
        return "Let the compiler replay CUDA graphs: --torchcompile-mode reduce-overhead."
    return "Give the device more to do per step: raise --batch-size."


# In their order: data that comes late hides the rest, and so does a host that is late.
RULES = (
    Rule(
        "decoding within the step",
        lambda p: _waits(p) and p.loading is not None and p.loading.threads == 0,
        lambda p, _: f"no threads decode ahead, and the step spent {p.waiting_share:.0%} of its time on it",
        _decoding_remedy,
    ),
    Rule(
        "decoding",
        lambda p: _waits(p) and _busy(p) and p.loading.cpu_share >= HAS_CORE,
        lambda p, _: f"{_threads(p)} busy {p.loading.busy_share:.0%} of the time, and {_waited(p)}",
        _decoding_remedy,
    ),
    Rule(
        "reading",
        lambda p: _waits(p) and _busy(p),
        lambda p, _: (
            f"{_threads(p)} busy {p.loading.busy_share:.0%} of the time, with a core for only "
            f"{p.loading.cpu_share:.0%} of that, and {_waited(p)}"
        ),
        _reading_remedy,
    ),
    Rule(
        "the way of the data to the device",
        _waits,
        lambda p, _: (
            f"the step waited {p.waiting_share:.0%} of its time for data"
            + (f", though {_threads(p)} busy only {p.loading.busy_share:.0%} of the time" if p.loading else "")
        ),
        _delivery_remedy,
    ),
    Rule(
        "the host",
        lambda p: p.idle_share >= IDLE,
        lambda p, _: f"the device was idle {p.idle_share:.0%} of the time, waiting for work rather than for data",
        _host_remedy,
    ),
    Rule("augmentation", _largest("augment"), _costs("augment"), _augment_remedy),
    Rule("forward and backward pass", _largest("forward", "backward"), _costs("forward", "backward"), _model_remedy),
    Rule("the loss", _largest("loss"), _costs("loss"), _loss_remedy),
    Rule(
        "the optimizer",
        _largest("optimizer"),
        _costs("optimizer"),
        lambda *_: "It costs the same whatever the batch: raise --batch-size.",
    ),
)


def verdict(profile: Profile, circumstances: Circumstances) -> str:
    """What bounds the run, how that shows, and what to do about it."""
    rule = next(rule for rule in RULES if rule.applies(profile))
    return f"The run is bound by {rule.bound}: {rule.evidence(profile, circumstances)}. " + rule.remedy(
        profile, circumstances
    )
