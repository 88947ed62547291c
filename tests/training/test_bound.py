"""Where the limits are between what bounds a profiled run, and how its phases are read from a profiler's events."""

import dataclasses
import types

import pytest
import torch
from torch.autograd import DeviceType

from simclr_fast.data.threads import Work
from simclr_fast.errors import ConfigError
from simclr_fast.training.bound import verdict
from simclr_fast.training.profile import LOSS_KERNELS, StepProfiler, loading
from simclr_fast.training.profiled import PHASES, Profile
from tests.training.test_profile import DECODING, MODEL, config, cpu, cuda, profile


def bound_of(measured: Profile, *, on_cuda: bool = False) -> str:
    return (
        verdict(measured, cuda(workers=16) if on_cuda else cpu())
        .partition(": ")[0]
        .removeprefix("The run is bound by ")
    )


@pytest.mark.parametrize(
    ("beyond", "within", "what", "otherwise"),
    [
        (profile(10.1, loading=DECODING), profile(9.9, loading=DECODING), "decoding", MODEL),
        (
            profile(41, loading=dataclasses.replace(DECODING, busy_share=0.851)),
            profile(41, loading=dataclasses.replace(DECODING, busy_share=0.849)),
            "decoding",
            "the cores that reading and the step share",
        ),
        (
            profile(41, loading=dataclasses.replace(DECODING, cpu_share=0.501)),
            profile(41, loading=dataclasses.replace(DECODING, cpu_share=0.499)),
            "decoding",
            "reading",
        ),
        (profile(idle=20.1), profile(idle=19.9), "the host", MODEL),
        (profile(augment=30.1), profile(augment=29.9), "augmentation", MODEL),
    ],
    ids=["waiting", "busy threads", "threads with a core", "idle device", "augmentation"],
)
def test_limits_are_where_they_are_said_to_be(beyond: Profile, within: Profile, what: str, otherwise: str) -> None:
    on_cuda = beyond.idle_ms is not None
    assert (bound_of(beyond, on_cuda=on_cuda), bound_of(within, on_cuda=on_cuda)) == (what, otherwise)


@pytest.mark.parametrize(("sum_ms", "is_told"), [(74.9, True), (75.1, False), (134.9, False), (135.1, True)])
def test_phases_and_waiting_may_differ_so_much_from_the_step(sum_ms: float, is_told: bool) -> None:
    others = 3.0  # augmentation, loss and optimizer; the copy goes on beside them
    measured = profile(5.0, forward=10.0, backward=sum_ms - 5.0 - others - 10.0)
    assert (f"sum to {sum_ms:.0f}% of a step as it is" in verdict(measured, cpu())) == is_told


def test_what_is_no_bound_and_no_remedy_is_not_named() -> None:
    reads_itself = dataclasses.replace(DECODING, threads=0)
    assert bound_of(profile(5, loading=reads_itself)) == MODEL, "it does not wait"
    said = verdict(profile(41, loading=DECODING), cuda(workers=16, decode_device="cuda"))
    assert "bound by decoding" in said
    assert "--decode-device" not in said, "the GPU decodes already"
    assert "It grows with the square of the batch" in verdict(profile(loss=50.0), cpu(amp_dtype="float32"))


@pytest.mark.parametrize("phase", ["augment", "forward", "loss", "optimizer"])
def test_of_every_phase_is_told_that_its_steps_were_slower(phase: str) -> None:
    assert "as it is: profile more steps" in verdict(profile(**{phase: 150.0}), cpu())


def test_shares_are_of_the_step_or_of_what_its_phases_take_longer() -> None:
    measured = Profile(100.0, 10.0, dict.fromkeys(PHASES, 5.0) | {"copy": 90.0}, idle_ms=30.0)
    assert (measured.waiting_share, measured.idle_share, measured.phases_ms) == (0.1, 0.3, 25.0)
    assert measured.share("loss", "augment") == 0.1
    assert "loss + augmentation: 10.0% of the step" in measured.table()
    assert dataclasses.replace(measured, step_ms=20.0).share("loss") == 0.2
    assert dataclasses.replace(measured, idle_ms=None).idle_share == 0


def test_threads_without_a_core_or_in_the_step_are_told_as_shares() -> None:
    assert loading(Work(5, 1.0, 1.0), Work(15, 3.0, 1.5), threads=0, seconds=4.0).busy_share == 0.5
    assert loading(Work(5, 1.0, 1.0), Work(15, 3.0, 1.5), threads=0, seconds=4.0).cpu_share == 0.25
    assert loading(Work(5, 1.0, 1.0), Work(15, 1.0, 1.0), threads=1, seconds=4.0).cpu_share == 1


def test_a_profile_warms_up_until_what_was_read_ahead_is_used_up() -> None:
    def warmup(images: int, steps_left: int, **options: int) -> int:
        return StepProfiler(config(profile=2, **options), torch.device("cpu"), images, steps_left).warmup

    assert warmup(256, 11, workers=8) == 3 + 4, "two chunks of 64 images a thread, of 256 a step"
    assert warmup(300, 11, workers=8) == 3 + 4
    assert warmup(16, 99, workers=8) == 3 + 16
    assert warmup(16, 7, workers=0) == 3
    with pytest.raises(ConfigError, match="^--profile 2: it takes 11 steps, and the run has 10; pass fewer"):
        warmup(256, 10, workers=8)


def event(name: str, us: float = 0.0, parent: object = None, device: DeviceType = DeviceType.CPU) -> object:
    """An event as a profiler gives it; on the device, work of the host took ten times as long."""
    span = types.SimpleNamespace(elapsed_us=lambda: us)
    return types.SimpleNamespace(
        **{"name": name, "device_type": device, "time_range": span, "cpu_parent": parent},
        **{"cpu_time_total": us, "device_time_total": 10 * us},
    )


@pytest.mark.parametrize("on_cuda", [False, True])
def test_backward_of_the_loss_counts_as_loss_once(on_cuda: bool) -> None:
    loss, backward = event("loss", 7.0), event("backward", 500.0)
    inner = event("autograd", parent=backward)
    kernel = event(f"{LOSS_KERNELS}_bwd", 20.0, inner)
    events = [loss, backward, inner, kernel, event(f"{LOSS_KERNELS}_bwd.inner", 9.0, kernel), event("forward", 30.0)]
    events += [event(f"{LOSS_KERNELS}_fwd", 5.0, event("dispatch", parent=loss)), event("forward", 4.0)]
    events += [
        event("Memcpy HtoD (Pinned)", 3.0, device=DeviceType.CUDA),
        event("a kernel", 8.0, None, DeviceType.CUDA),
    ]
    profiler = object.__new__(StepProfiler)  # without the profilers of torch, of which a run of tests has one
    profiler.on_cuda, profiler.profiler = on_cuda, types.SimpleNamespace(events=lambda: events)
    moved = 200.0 if on_cuda else 20.0
    expected = {"augment": 0, "forward": 34, "loss": 7 + moved, "backward": 500 - moved, "optimizer": 0}
    if on_cuda:
        assert profiler._phases_us() == {"copy": 3, **expected}
    else:
        profiler.profiler.events = lambda: [one for one in events if one.device_type == DeviceType.CPU]
        assert profiler._phases_us() == expected
