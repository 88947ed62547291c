"""What bounds a profiled run, and the remedy: the rules behind the sentences of --profile."""

import dataclasses
import os
from collections.abc import Callable

import torch

from simclr_fast.backends import resolve_backend
from simclr_fast.config import Config, graph_conflict
from simclr_fast.named_options import changed
from simclr_fast.training.profiled import Form, Profile, form_of

# Shares from which on something counts as the bound; below, it costs less than what a remedy could bring.
WAITING = 0.10  # of the step, for data
SATURATED = 0.85  # of the threads' time: threads that are a little too many idle now and then
HAS_CORE = 0.5  # of the busy time: decoding is arithmetic, so a thread that has a core for less is kept from it
IDLE = 0.20  # of the step, the device
AGREE = (0.75, 1.35)  # of a step's time, what its phases and the waiting may sum to: phases are of other steps

PACK = "pack the data set (simclr-fast pack; with --format raw nothing is left to decode)"
PACK_RAW = "pack the data set with --format raw, which leaves nothing to decode"
HOLD = "let the images lie on the devices (--resident on)"


@dataclasses.dataclass(frozen=True)
class Circumstances:
    """What a remedy depends on.

    config: the options; form: how the images are stored; cores: of this process; slow_ops: that only the reference
    serves here; processes: of the run.
    """

    config: Config
    on_cuda: bool
    cores: int
    slow_ops: frozenset[str] = frozenset()
    processes: int = 1
    form: Form = "files"

    @classmethod
    def here(cls, config: Config, device: torch.device) -> "Circumstances":
        """Those of this process, which shares the machine's cores with the other processes of torchrun."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        slow = (op for op in ("ntxent_fwd", "augment") if resolve_backend("auto", op, device) == "reference")
        local, processes = (int(os.environ.get(name, 1)) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
        form = form_of(config.data)
        return cls(config, device.type == "cuda", max(1, cores // local), frozenset(slow), processes, form)


Test = Callable[[Profile, Circumstances], bool]
Words = Callable[[Profile, Circumstances], str]


@dataclasses.dataclass(frozen=True)
class Rule:
    """A bound: its name, when it is the one, how the measurement shows it, and the remedy as a whole sentence."""

    bound: str
    applies: Test
    evidence: Words
    remedy: Words
    of_phases: bool = False  # whether the evidence is a share that phases take


def _waits(profile: Profile) -> bool:
    return profile.waiting_share >= WAITING


def _busy(profile: Profile) -> bool:
    return profile.loading is not None and profile.loading.busy_share >= SATURATED


def _in_step(profile: Profile) -> bool:
    return _waits(profile) and profile.loading is not None and profile.loading.threads == 0


def _waited(profile: Profile) -> str:
    them = "it" if profile.loading.threads == 1 else "them"
    return f"the step waited {profile.waiting_share:.0%} of its time for {them}"


def _waited_for_idle(profile: Profile) -> str:
    return (
        f"the step waited {profile.waiting_share:.0%} of its time for data, though {_threads(profile)} busy only "
        f"{profile.loading.busy_share:.0%} of the time"
    )


def _threads(profile: Profile) -> str:
    count = profile.loading.threads
    return f"{count} thread was" if count == 1 else f"{count} threads were"


def _costs(*phases: str) -> Words:
    return lambda profile, _: f"it takes {profile.share(*phases):.0%} of the step"


def _disagreement(profile: Profile) -> str:
    """What to think of shares where the phases are of steps that were much slower or faster than those as they are."""
    of_step = (profile.phases_ms + profile.waiting_ms) / profile.step_ms
    if AGREE[0] <= of_step <= AGREE[1]:
        return ""
    return (
        f" But the phases, measured in other steps, sum to {of_step:.0%} of a step as it is: profile more steps, with "
        "nothing else on the machine."
    )


def _largest(*phases: str) -> Test:
    """Whether these phases together take longer than any other part of the step."""

    def applies(profile: Profile, _: Circumstances) -> bool:
        parts = (("augment",), ("forward", "backward"), ("loss",), ("optimizer",))
        return max(parts, key=lambda names: profile.share(*names)) == phases

    return applies


def _more_threads(circumstances: Circumstances) -> str:
    cores = circumstances.cores
    return f"raise --workers to {cores} (cores: {cores})" if circumstances.config.data.workers < cores else ""


def _sentence(*parts: str) -> str:
    """The parts that there are as alternatives."""
    *first, last = [part for part in parts if part]
    text = f"{', '.join(first)}, or {last}" if first else last
    return f"{text[0].upper()}{text[1:]}."


def _other_form(circumstances: Circumstances) -> str:
    return {"files": PACK, "jpeg": PACK_RAW, "raw": HOLD}[circumstances.form]


def _decoding_remedy(_: Profile, circumstances: Circumstances) -> str:
    idle_decoder = circumstances.on_cuda and circumstances.config.data.decode_device == "cpu"
    by_gpu = "let the GPU decode (--decode-device cuda)" if idle_decoder else ""
    return _sentence(_more_threads(circumstances), _other_form(circumstances), by_gpu)


def _reading_remedy(profile: Profile, circumstances: Circumstances) -> str:
    if profile.loading.threads == 0 or profile.loading.cpu_share >= HAS_CORE:
        return _sentence(_more_threads(circumstances), _other_form(circumstances))
    return (
        "Either the files come slowly, or too many threads and programs share the cores "
        f"(cores: {circumstances.cores}). " + _sentence("put the files on a faster disk", _other_form(circumstances))
    )


def _delivery_remedy(_: Profile, circumstances: Circumstances) -> str:
    if circumstances.config.data.decode_device == "cuda":
        by_threads = "decode by threads (--decode-device cpu)"
        return "The GPU decodes and trains in turn. " + _sentence(by_threads, _other_form(circumstances))
    less = {
        "files": "pack the data set at 256 pixels (simclr-fast pack), so that less is moved",
        "jpeg": "pack the data set with --format raw, whose images can lie on the devices",
        "raw": HOLD,
    }
    return _sentence(_more_threads(circumstances), less[circumstances.form])


def _sharing_remedy(_: Profile, circumstances: Circumstances) -> str:
    return (
        f"Either the threads that read and those of the step share too few cores (cores: {circumstances.cores}): let "
        "--workers and --threads together be no more. Or it is the beginning of an epoch that waits: profile more "
        "steps."
    )


def _augment_remedy(_: Profile, circumstances: Circumstances) -> str:
    options = circumstances.config.augment
    if "augment" in circumstances.slow_ops:
        return "The reference does it: simclr-fast info says why no kernel serves."
    if options.rotate > 0 or options.shear > 0:
        return "Rotation and shear are done after the fused kernel, at its cost again: --rotate 0 --shear 0."
    first = "The blur costs most: lower --blur-p or --size" if options.blur_p > 0 else "Lower --size"
    packed = "; large images cost less packed at 256 pixels (simclr-fast pack)"
    return f"{first} if the recipe allows it{packed if circumstances.form == 'files' else ''}."


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
        return "The reference does it: simclr-fast info says why no kernel serves."
    if circumstances.on_cuda and config.speed.amp_dtype == "float32":
        return "Tensor cores want --amp-dtype bfloat16."
    return "It grows with the square of the batch and with the embedding: lower --batch-size or --head-dim."


def _host_remedy(profile: Profile, circumstances: Circumstances) -> str:
    config, speed = circumstances.config, circumstances.config.speed
    alone = profile.loading is None and circumstances.processes == 1
    if alone and graph_conflict(changed(config, {"profile": 0})) is None:
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
        "reading within the step",
        lambda p, c: _in_step(p) and c.form == "raw",
        lambda p, _: f"no threads read ahead, and the step spent {p.waiting_share:.0%} of its time on it",
        _reading_remedy,
    ),
    Rule(
        "decoding within the step",
        lambda p, _: _in_step(p),
        lambda p, _: f"no threads decode ahead, and the step spent {p.waiting_share:.0%} of its time on it",
        _decoding_remedy,
    ),
    Rule(
        "decoding",
        lambda p, c: _waits(p) and _busy(p) and p.loading.cpu_share >= HAS_CORE and c.form != "raw",
        lambda p, _: f"{_threads(p)} busy {p.loading.busy_share:.0%} of the time, and {_waited(p)}",
        _decoding_remedy,
    ),
    Rule(
        "reading",
        lambda p, _: _waits(p) and _busy(p),
        lambda p, _: (
            f"{_threads(p)} busy {p.loading.busy_share:.0%} of the time, "
            + (f"with a core for only {p.loading.cpu_share:.0%} of that, " if p.loading.cpu_share < HAS_CORE else "")
            + f"and {_waited(p)}"
        ),
        _reading_remedy,
    ),
    Rule(
        "what happens between the steps",
        lambda p, _: _waits(p) and p.loading is None,
        lambda p, _: f"the step waited {p.waiting_share:.0%} of its time, though the images lie in memory",
        lambda *_: "What waits is the host, or the exchange between two epochs: profile more steps.",
    ),
    Rule(
        "the way of the data to the device",
        lambda p, c: _waits(p) and c.on_cuda,
        lambda p, _: _waited_for_idle(p),
        _delivery_remedy,
    ),
    Rule(
        "the cores that reading and the step share",
        lambda p, _: _waits(p),
        lambda p, _: _waited_for_idle(p),
        _sharing_remedy,
    ),
    Rule(
        "the host",
        lambda p, _: p.idle_share >= IDLE,
        lambda p, _: f"the device was idle {p.idle_share:.0%} of the time, waiting for work rather than for data",
        _host_remedy,
    ),
    Rule("augmentation", _largest("augment"), _costs("augment"), _augment_remedy, of_phases=True),
    Rule(
        "forward and backward pass",
        _largest("forward", "backward"),
        _costs("forward", "backward"),
        _model_remedy,
        of_phases=True,
    ),
    Rule("the loss", _largest("loss"), _costs("loss"), _loss_remedy, of_phases=True),
    Rule(
        "the optimizer",
        _largest("optimizer"),
        _costs("optimizer"),
        lambda *_: "It costs the same whatever the batch: raise --batch-size.",
        of_phases=True,
    ),
)


def verdict(profile: Profile, circumstances: Circumstances) -> str:
    """What bounds the run, how that shows, and what to do about it."""
    rule = next(rule for rule in RULES if rule.applies(profile, circumstances))
    said = (
        f"The run is bound by {rule.bound}: {rule.evidence(profile, circumstances)}. "
        f"{rule.remedy(profile, circumstances)}"
    )
    return said + (_disagreement(profile) if rule.of_phases else "")
