"""--profile: what is measured, what is said to bound a run by it, and that what is advised exists."""

import dataclasses
import inspect
import json
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from simclr_fast import NTXentLoss
from simclr_fast.checkpoint import checkpoints
from simclr_fast.cli import main
from simclr_fast.config import AugmentOptions, Config, SourceOptions, flag
from simclr_fast.data import sources
from simclr_fast.data.pack import PackOptions, pack
from simclr_fast.data.threads import Work
from simclr_fast.recipes import RECIPES
from simclr_fast.run_files import METRICS_FILE, read_metrics
from simclr_fast.training import bound
from simclr_fast.training.bound import RULES, Circumstances, verdict
from simclr_fast.training.profile import covered, loading
from simclr_fast.training.profiled import PHASES, Loading, Profile, form_of
from simclr_fast.training.step import TrainStep
from simclr_fast.training.views import Views
from tests.data.conftest import write_image

SMALL = ["demo", "--batch-size", "100", "--size", "8", "--epochs", "2", "--head-hidden", "32", "--threads", "1"]
DECODING = Loading(threads=2, busy_share=0.98, cpu_share=0.95, image_ms=1.6)


def profile(
    waiting: float = 0.0, idle: float | None = None, loading: Loading | None = None, **phases: float
) -> Profile:
    """Of a step of 100 ms, in which the model takes the most unless a phase is given."""
    times = dict.fromkeys(PHASES, 1.0) | {"forward": 10.0, "backward": 20.0} | phases
    return Profile(100.0, waiting, times, idle, loading)


def config(**options: object) -> Config:
    """Of the ImageNet recipe, with these options."""
    groups = {}
    for field in dataclasses.fields(Config):
        group = getattr(RECIPES["imagenet"], field.name)
        if dataclasses.is_dataclass(group):
            names = {of.name for of in dataclasses.fields(group)} & options.keys()
            groups[field.name] = dataclasses.replace(group, **{name: options.pop(name) for name in names})
    assert not options, "no such option"
    return dataclasses.replace(RECIPES["imagenet"], **groups)


def cpu(cores: int = 2, slow: str = "", **options: object) -> Circumstances:
    return Circumstances(config(**options), False, cores, frozenset(slow.split()))


def packed(form: str, circumstances: Circumstances) -> Circumstances:
    return dataclasses.replace(circumstances, form=form)


def cuda(cores: int = 16, slow: str = "", **options: object) -> Circumstances:
    return Circumstances(config(**options), True, cores, frozenset(slow.split()))


# (what was measured, under which circumstances, the bound, what the sentences must hold)
MODEL = "forward and backward pass"
CASES = {
    "threads are busy, cores are left": (
        profile(41, loading=DECODING),
        cuda(workers=2),
        "decoding",
        "2 threads were busy 98% of the time, and the step waited 41% of its time for them. Raise --workers to 16 "
        "(cores: 16), pack the data set (simclr-fast pack; with --format raw nothing is left to "
        "decode), or let the GPU decode (--decode-device cuda).",
    ),
    "threads are busy on all cores": (
        profile(41, loading=DECODING),
        cpu(workers=2),
        "decoding",
        "for them. Pack the data set (simclr-fast pack; with --format raw nothing is left to decode).",
    ),
    "one thread": (
        profile(41, loading=dataclasses.replace(DECODING, threads=1)),
        cpu(workers=1),
        "decoding",
        "1 thread was busy 98% of the time, and the step waited 41% of its time for it. Raise --workers to 2",
    ),
    "no threads": (
        profile(41, loading=dataclasses.replace(DECODING, threads=0)),
        cpu(workers=0),
        "decoding within the step",
        "no threads decode ahead, and the step spent 41% of its time on it. Raise --workers to 2 (cores: 2)",
    ),
    "threads wait for files": (
        profile(41, loading=dataclasses.replace(DECODING, cpu_share=0.2)),
        cpu(),
        "reading",
        "busy 98% of the time, with a core for only 20% of that, and the step waited 41% of its time for them. Either "
        "the files come slowly, or too many threads and programs share the cores (cores: 2). Put the files on",
    ),
    "threads wait for the step": (
        profile(41, loading=dataclasses.replace(DECODING, busy_share=0.4)),
        cuda(workers=16),
        "the way of the data to the device",
        "waited 41% of its time for data, though 2 threads were busy only 40% of the time. Pack the data set at 256",
    ),
    "threads wait for the step on the CPU": (
        profile(41, loading=dataclasses.replace(DECODING, busy_share=0.4)),
        cpu(workers=2),
        "the cores that reading and the step share",
        "waited 41% of its time for data, though 2 threads were busy only 40% of the time. Either the threads that "
        "read and those of the step share too few cores (cores: 2): let --workers and --threads together be no more.",
    ),
    "packed JPEGs are decoded": (
        profile(41, loading=DECODING),
        packed("jpeg", cuda(workers=16)),
        "decoding",
        "for them. Pack the data set with --format raw, which leaves nothing to decode, or let the GPU decode",
    ),
    "packed JPEGs come slowly": (
        profile(41, loading=dataclasses.replace(DECODING, cpu_share=0.2)),
        packed("jpeg", cpu()),
        "reading",
        "on a faster disk, or pack the data set with --format raw, which leaves nothing to decode.",
    ),
    "packed JPEGs on their way": (
        profile(41, loading=dataclasses.replace(DECODING, busy_share=0.4)),
        packed("jpeg", cuda(workers=16)),
        "the way of the data to the device",
        "Pack the data set with --format raw, whose images can lie on the devices.",
    ),
    "raw images are read": (
        profile(41, loading=DECODING),
        packed("raw", cuda(workers=2)),
        "reading",
        "2 threads were busy 98% of the time, and the step waited 41% of its time for them. Raise --workers to 16 "
        "(cores: 16), or let the images lie on the devices (--resident on).",
    ),
    "raw images are read, without threads": (
        profile(41, loading=dataclasses.replace(DECODING, threads=0)),
        packed("raw", cpu(workers=0)),
        "reading within the step",
        "no threads read ahead, and the step spent 41% of its time on it. Raise --workers to 2 (cores: 2), or let the "
        "images lie on the devices (--resident on).",
    ),
    "raw images come slowly": (
        profile(41, loading=dataclasses.replace(DECODING, cpu_share=0.2)),
        packed("raw", cpu()),
        "reading",
        "Put the files on a faster disk, or let the images lie on the devices (--resident on).",
    ),
    "raw images on their way": (
        profile(41, loading=dataclasses.replace(DECODING, busy_share=0.4)),
        packed("raw", cuda(workers=16)),
        "the way of the data to the device",
        "busy only 40% of the time. Let the images lie on the devices (--resident on).",
    ),
    "the GPU decodes": (
        profile(41, loading=dataclasses.replace(DECODING, busy_share=0.1)),
        cuda(decode_device="cuda"),
        "the way of the data to the device",
        "The GPU decodes and trains in turn. Decode by threads (--decode-device cpu), or pack the data set",
    ),
    "a resident set that waits": (
        profile(41),
        packed("raw", cuda(workers=16)),
        "what happens between the steps",
        "the step waited 41% of its time, though the images lie in memory. What waits is the host, or the exchange "
        "between two epochs: profile more steps.",
    ),
    "the host, without a graph": (
        profile(5, idle=60.0),
        cuda(cuda_graph="off"),
        "the host",
        "the device was idle 60% of the time, waiting for work rather than for data. Let a CUDA graph replay the whole "
        "step: --cuda-graph auto.",
    ),
    "the host, in a profile alone": (
        profile(idle=60.0),
        cuda(profile=5, cuda_graph="auto"),
        "the host",
        "Without --profile, which looks",
    ),
    "the host, eager on files": (
        profile(idle=60.0, loading=DECODING),
        cuda(torchcompile="off"),
        "the host",
        "for work rather than for data. Compile the step, which launches fewer kernels: --torchcompile inductor.",
    ),
    "the host, of several": (
        profile(idle=60.0),
        dataclasses.replace(cuda(), processes=8),
        "the host",
        "--torchcompile-mode reduce-overhead.",
    ),
    "the host, float16 in graphs": (
        profile(idle=60.0),
        cuda(torchcompile_mode="reduce-overhead", amp_dtype="float16"),
        "the host",
        "Give the device more to do per step: raise --batch-size.",
    ),
    "augmentation": (profile(augment=50.0), cuda(), "augmentation", "it takes 50% of the step. The blur costs most"),
    "augmentation without blur": (profile(augment=50.0), cpu(blur_p=0.0), "augmentation", "Lower --size if"),
    "augmentation of a packed set": (
        profile(augment=50.0),
        packed("raw", cuda()),
        "augmentation",
        "The blur costs most: lower --blur-p or --size if the recipe allows it.",
    ),
    "augmentation with a warp": (profile(augment=50.0), cpu(shear=0.1), "augmentation", "--rotate 0 --shear 0"),
    "augmentation by the reference": (
        profile(augment=50.0),
        cpu(slow="augment"),
        "augmentation",
        "The reference does it: simclr-fast info",
    ),
    "model, NCHW": (
        profile(),
        cpu(channels_last=False),
        MODEL,
        "it takes 30% of the step. Its convolutions are faster in the layout of --channels-last.",
    ),
    "model, float32 on a GPU": (profile(), cuda(amp_dtype="float32"), MODEL, "--amp-dtype bfloat16"),
    "model, eager on a GPU": (profile(), cuda(torchcompile="off"), MODEL, "--torchcompile inductor"),
    "model, compiled on a GPU": (profile(), cuda(), MODEL, "--torchcompile-mode max-autotune"),
    "model, tuned on a GPU": (profile(), cuda(torchcompile_mode="max-autotune"), MODEL, "That is its arithmetic"),
    "model, in parts": (profile(), cpu(micro_batch_size=32), MODEL, "a second forward pass"),
    "model, few threads": (profile(), cpu(threads=1), MODEL, "It uses 1 of 2 cores: --threads 0"),
    "model, on all cores": (profile(), cpu(), MODEL, "That is its arithmetic"),
    "loss": (profile(loss=50.0), cpu(), "the loss", "it takes 50% of the step. It grows with the square of the batch"),
    "loss by the reference": (profile(loss=50.0), cpu(slow="ntxent_fwd"), "the loss", "The reference does it"),
    "loss, float32 on a GPU": (profile(loss=50.0), cuda(amp_dtype="float32"), "the loss", "--amp-dtype bfloat16"),
    "optimizer": (
        profile(optimizer=50.0),
        cuda(),
        "the optimizer",
        "it takes 50% of the step. It costs the same whatever the batch: raise --batch-size.",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_bound_is_named_with_its_remedy(name: str) -> None:
    measured, circumstances, what, words = CASES[name]
    said = verdict(measured, circumstances)
    assert said.startswith(f"The run is bound by {what}: ")
    assert words in said
    assert said.endswith(".")


def test_every_rule_has_a_case_and_one_rule_serves_whatever_was_measured() -> None:
    assert {what for _, _, what, _ in CASES.values()} == {rule.bound for rule in RULES}
    only = dict.fromkeys(PHASES, 0.0)
    assert "forward and backward" in verdict(Profile(1.0, 0.0, only | {"forward": 1.0}), cpu())
    assert verdict(Profile(1.0, 0.0, only), cpu()), "nothing took any time"


def test_shares_of_slower_steps_are_of_their_own_sum_and_that_is_said() -> None:
    slower = profile(forward=60.0, backward=136.0)  # with the other phases, 199 ms; a step as it is takes 100
    said = verdict(slower, cpu())
    assert "it takes 98% of the step. " in said
    assert said.endswith(
        " But the phases, measured in other steps, sum to 199% of a step as it is: profile more steps, with nothing "
        "else on the machine."
    )
    assert "sum to 33% of a step as it is" in verdict(profile(), cpu())
    assert "sum to" not in verdict(profile(forward=30.0, backward=60.0), cpu())
    assert "sum to" not in verdict(profile(41, loading=DECODING), cpu()), "no phase is spoken of"
    assert "backward        136.00   68.3%" in slower.table()


def test_what_is_advised_exists() -> None:
    groups = [getattr(Config(), field.name) for field in dataclasses.fields(Config)]
    options = {flag(name) for group in groups if dataclasses.is_dataclass(group) for name in vars(group)} | {"--format"}
    text = inspect.getsource(bound)
    advised = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text)) - {"--profile"}
    assert len(advised) > 10
    assert advised <= options
    for module in re.findall(r"python -m simclr_fast\.(\w+)", text):
        assert find_spec(f"simclr_fast.{module}.__main__" if module == "data" else f"simclr_fast.{module}"), module


def test_ranges_cover_what_they_overlap_once() -> None:
    assert covered([]) == 0
    assert covered([(3, 4), (0, 2), (1, 2.5), (0.5, 1), (4, 5)]) == pytest.approx(4.5)


def test_what_threads_did_is_told_as_shares() -> None:
    found = loading(Work(10, 1.0, 0.5), Work(30, 3.0, 1.5), threads=4, seconds=1.0)
    assert found == Loading(threads=4, busy_share=0.5, cpu_share=0.5, image_ms=100.0)
    assert loading(Work(10, 1.0, 0.5), Work(10, 1.0, 0.5), threads=4, seconds=1.0) is None
    assert loading(Work(0, 0.0, 0.0), Work(1, 9.0, 9.0), threads=1, seconds=1.0).busy_share == 1, "begun before"


def test_the_table_shows_a_device_only_where_there_is_one() -> None:
    on_cpu = profile(41, loading=DECODING).table()
    assert "idle" not in on_cpu
    assert "waiting          41.00   41.0%" in on_cpu
    assert "reading and decoding: 1.60 ms per image, 2 threads busy 98% of the time" in on_cpu
    assert "idle              7.00    7.0%" in profile(idle=7.0).table()
    raw = dataclasses.replace(DECODING, decodes=False)
    assert "\nreading: 1.60 ms per image, 2 threads busy" in profile(41, loading=raw).table()


def run(tmp_path: Path, capsys, *options: str) -> tuple[dict[str, float], str]:
    """Milliseconds by row of the table, and the line of the verdict, of a run that is profiled."""
    assert main(["pretrain", *options, "--output", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    rows = re.findall(r"^(\w+) +([\d.]+) +[\d.]+%", said, flags=re.MULTILINE)
    return {name: float(ms) for name, ms in rows}, re.search(r"^The run is bound by .*", said, flags=re.MULTILINE)[0]


def test_a_compiled_step_has_the_phases_of_an_eager_one() -> None:
    """Around the graphs: within one, a profiler sees no ranges."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=torch.tensor(0.1), fused=True)
    views = Views(AugmentOptions(size=8), seed=0, channels_last=False)
    draw = views.draw(torch.arange(4), 0)
    pictures = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    step = TrainStep(model, views, NTXentLoss(0.5), optimizer, compile_backend="eager")
    step(pictures, draw, 0.1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        step(pictures, draw, 0.1)
    names = [event.name for event in recorded.events()]
    assert [names.count(name) for name in PHASES[1:]] == [1] * 5


def test_a_run_on_the_cpu_names_its_phases_and_leaves_the_folder_as_it_is(tmp_path: Path, capsys) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / METRICS_FILE).write_text('{"step": 5, "loss": 2.0}\n')  # of a run that is in the folder
    times, said = run(tmp_path, capsys, *SMALL, "--profile", "3")
    assert list(times) == ["waiting", "augment", "forward", "loss", "backward", "optimizer", "step"]
    assert all(ms > 0 for ms in times.values())
    assert said.startswith("The run is bound by ")
    trace = json.loads((tmp_path / "run" / "profile.json").read_text())
    names = [event.get("name") for event in trace["traceEvents"]]
    assert names.count("forward") == 3
    text = (tmp_path / "run" / "profile.txt").read_text()
    assert said in text
    assert "aten::" in text
    assert read_metrics(tmp_path / "run" / METRICS_FILE) == [{"step": 5, "loss": 2.0}], (
        "a profile is no part of the run"
    )
    assert not checkpoints(tmp_path / "run")


@pytest.mark.parametrize(("workers", "what"), [(0, "decoding within the step"), (1, "reading")])
def test_a_run_that_waits_for_slow_files(workers: int, what: str, tmp_path: Path, capsys, monkeypatch) -> None:
    """Each takes so long that the step waits, however busy the machine is; a sleeping thread has no core."""
    for i in range(40):  # one epoch: between two, threads have nothing to do
        write_image(tmp_path / f"{i}.jpg", 10, 10, seed=i)
    decode = sources.decode_rgb
    monkeypatch.setattr(sources, "decode_rgb", lambda encoded: (time.sleep(0.03), decode(encoded))[1])
    data = ["--dataset", "imagefolder", "--data", str(tmp_path), "--workers", str(workers), "--mean", "0"]
    small = ["demo", "--batch-size", "4", "--size", "8", "--head-hidden", "8", "--threads", "1", "--warmup-epochs", "0"]
    _, said = run(tmp_path, capsys, *small, *data, "--profile", "2", "--epochs", "1")
    assert said.startswith(f"The run is bound by {what}: ")


def test_a_run_too_short_for_its_profile_is_refused(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "run"
    assert main(["pretrain", *SMALL, "--profile", "39", "--output", str(folder)]) == 2
    assert not folder.exists()
    said = capsys.readouterr().err
    assert "--profile 39: it takes 81 steps, and the run has 80; pass fewer, or more --epochs" in said


def test_circumstances_share_the_cores_among_the_processes(monkeypatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    here = lambda: Circumstances.here(config(), torch.device("cpu"))
    for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (here().cores, here().processes) == (16, 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert (here().cores, here().processes) == (4, 8)
    assert here().slow_ops == frozenset(), "the extension is built"
    assert here().form == "files"


def test_a_profile_of_a_raw_set_read_within_the_step(tmp_path: Path, monkeypatch) -> None:
    """Nothing decodes, and no line of the profiler's own log is in the way. In a process of its own, for its log."""
    for i in range(20):
        write_image(tmp_path / "in" / f"{i}.jpg", 10, 10, seed=i)
    raw = tmp_path / "raw"
    pack(PackOptions(raw, "raw", 8, data=SourceOptions(data=tmp_path / "in", workers=1)))
    assert form_of(SourceOptions(data=raw)) == "raw"
    small = ["demo", "--batch-size", "2", "--size", "8", "--head-hidden", "8", "--threads", "1", "--warmup-epochs", "0"]
    data = ["--dataset", "auto", "--data", str(raw), "--workers", "0", "--mean", "0", "--profile", "1", "--epochs", "1"]
    monkeypatch.delenv("KINETO_LOG_LEVEL", raising=False)
    arguments = ["-m", "simclr_fast", "pretrain", *small, *data, "--output", str(tmp_path / "run"), "--knn-epochs", "0"]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=600, check=True)
    assert re.search(r"^reading: [\d.]+ ms per image, the step itself busy", done.stdout, flags=re.MULTILINE)
    assert not re.findall("^(?:ERROR|USDT|WARNING|INFO):.*", done.stdout + done.stderr, flags=re.MULTILINE)
