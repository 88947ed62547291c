"""The report's table of targets, its comparison with an earlier run, and what it writes into the README."""

import copy
import json
from pathlib import Path

import pytest

from benchmarks import report_readme, report_tables
from benchmarks.targets import targets

MACHINE = {"device": "cpu", "processor": "a processor", "threads": 2, "commit": "abc", "modified": False}
RESULTS = {
    "machine_info": {"simclr_fast": {**MACHINE, "versions": {"torch": "2.14"}}},
    "datetime": "2026-11-26T00:00:00",
}


def timed(seconds: float, **more: object) -> dict:
    full = {"median": seconds, "q1": 0.98 * seconds, "q3": 1.02 * seconds, "rounds": 9}
    return {"error": 0.0, "tolerance": 1e-3, "seconds": {"full": full}, **more}


def ntxent(n: int, cpp: float, plain: float, peak_mib: float) -> dict:
    return {
        "name": f"test_ntxent[N={n},D=128,float32,t=0.1]",
        "case": {"n": n, "d": 128, "dtype": "float32", "temperature": 0.1},
        "multiply_adds": {"least": 8 * n * n * 128},
        "limits": {"multiply_adds_per_second": 1e9},
        "half_products": 0,
        "contestants": {
            "cpp": timed(cpp, peak_bytes=int(peak_mib * 2**20)),
            "plain": timed(plain, peak_bytes=900 * 2**20),
            "lightly": timed(2 * plain),
        },
    }


def augment(batch: int, side: int, size: int, **seconds: float) -> dict:
    return {
        "name": f"test_augment[{batch}x{side}->{size},all,NHWC]",
        "case": {"batch": batch, "side": side, "size": size, "ops": "all", "channels_last": True},
        "views": 2 * batch,
        "contestants": {name: timed(value) for name, value in seconds.items()},
    }


@pytest.fixture
def found() -> dict[str, list[dict]]:
    wrong = {"error": 0.5, "tolerance": 0.05}
    large = augment(64, 256, 224, cpp=0.03, torchvision=0.27, dali=0.6)
    large["contestants"]["albumentations"] = wrong
    limit = 8 * 4096**2 * 128 / 1e9
    return {
        "ntxent": [ntxent(256, 1.0, 2.0, 1), ntxent(1024, 1.0, 5.0, 5), ntxent(4096, 1.3 * limit, 6.5 * limit, 33)],
        "ntxent_memory": [ntxent(32768, 1.0, 1.0, 200)],
        "host": [{"name": "test_host[N=4,D=8]", "contestants": {"kernels": timed(30e-6), "cpp": timed(130e-6)}}],
        "augment": [augment(256, 32, 32, cpp=0.002, torchvision=1.0, dali=0.04, albumentations=0.001), large],
    }


def test_targets_are_computed_from_the_figures(found: dict) -> None:
    rows = {target.what: target for target in targets(found)}
    verdicts = {what: (None if t.measured is None else round(t.measured, 3), t.met) for what, t in rows.items()}
    assert verdicts["NT-Xent, N = 256: against plain PyTorch"] == (2.0, True)
    assert verdicts["NT-Xent, N = 2048: against plain PyTorch"] == (None, None)
    assert verdicts["NT-Xent, N = 4096: against plain PyTorch"] == (5.0, True)
    assert verdicts["NT-Xent, N = 4096: over the multiply-add limit"] == (1.3, True)
    assert verdicts["NT-Xent, N = 4096: peak memory beyond the inputs"] == (33.0, False)
    assert verdicts["NT-Xent, N = 32768: peak memory beyond the inputs"] == (200.0, True)
    assert rows["NT-Xent, N = 4: host time beyond the kernels"].reason == "plain was not timed"
    found["host"][0]["contestants"]["plain"] = timed(325e-6)
    rows |= {target.what: target for target in targets(found) if "host time" in target.what}
    assert round(rows["NT-Xent, N = 4: host time beyond the kernels"].measured) == 100
    assert round(rows["NT-Xent, N = 4: host time against plain PyTorch"].measured, 3) == 0.4
    assert verdicts["augmentation, 256 x 32 to 32 px: against torchvision"] == (500.0, True)
    assert verdicts["augmentation, 256 x 32 to 32 px: against albumentations"] == (0.5, False)
    assert verdicts["augmentation, 64 x 256 to 224 px: against torchvision"] == (9.0, False)
    assert rows["augmentation, 64 x 256 to 224 px: against albumentations"].reason == "albumentations was not timed"
    text = report_tables.targets_table(targets(found))
    assert "| NT-Xent, N = 4096: peak memory beyond the inputs | <= 32 MiB | 33.0 MiB | **missed** |" in text
    assert "| NT-Xent, N = 2048: against plain PyTorch | >= 2.4x | not measured: case not in this run |  |" in text


def row_of(text: str, name: str) -> list[str]:
    """The cells behind a contestant's name."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.split("|")[2:-1]]


def phased(**phases: float) -> dict:
    seconds = {name: {"median": value, "q1": 0.9 * value, "q3": 1.2 * value} for name, value in phases.items()}
    return {"error": 2e-4, "tolerance": 1e-3, "seconds": seconds}


def test_tables_hold_rates_and_ratios() -> None:
    """Seconds, bytes and counts whose quotients are easy to see."""
    plain, ours = phased(forward=0.004, backward=0.006, full=0.01), phased(forward=0.001, backward=0.003, full=0.004)
    case = {"name": "test_x[a,b]", "contestants": {"cpp": {**ours, "peak_bytes": 3 * 2**20}, "plain": plain}}
    about = {"bytes_per_second": 5e9, "multiply_adds": {"least": 1e9}, "least_bytes": 8e6, "half_products": 0}
    text = report_tables.ntxent_case({**case, **about, "limits": {"multiply_adds_per_second": 5e11}}, [])
    times = ["1.00 (0.900-1.20)", "3.00 (2.70-3.60)", "4.00 (3.60-4.80)"]
    assert row_of(text, "cpp") == [*times, "2.50x", "500", "2.00x", "2.00", "3.0", "2.0e-04"]
    assert row_of(text, "plain")[3:] == ["1.00x", "200", "5.00x", "0.800", "", "2.0e-04"]
    assert "Limit 2.00 ms: 2 M^2 D multiply-adds (2.00 GFLOP) at the 1,000 GFLOP/s of a large torch.mm in" in text
    assert "Least traffic 7.63 MiB; a copy reaches 5.00 GB/s" in text
    assert row_of(report_tables.losses_case(case, []), "cpp") == [*times, "2.50x", "2.0e-04"]
    host = {
        "name": "test_x[a]",
        "contestants": {"kernels": phased(forward=1e-6, backward=2e-6, full=3e-6), **case["contestants"]},
    }
    assert row_of(report_tables.host_case(host, []), "cpp") == ["1,000", "3,000", "4,000", "3,997", "0.400"]
    views = {"name": "test_x[a]", "views": 100, "least_bytes_per_view": 2e6}
    views["contestants"] = {"torchvision": phased(full=0.5), "cpp": phased(full=0.05)}
    assert row_of(report_tables.augment_case(views, []), "cpp")[1:] == ["2,000", "1,000", "10.0x", "4.00"]
    loading = {"name": "test_x[a]", "images": 60, "cores": 2}
    loading["contestants"] = {"DataLoader": phased(full=0.6), "simclr_fast": phased(full=0.2)}
    assert row_of(report_tables.loading_case(loading, []), "simclr_fast")[1:] == ["300", "150", "3.00x"]
    step = {"name": "test_x[a]", "images": 60, "contestants": {"cpp": phased(augment=0.1, model=0.3, full=0.4)}}
    assert row_of(report_tables.train_step_case(step, []), "cpp")[1:] == ["150", "25.0%", "75.0%"]
    files = {"cpu_seconds_per_image": 0.02, "cpu_share_before_model": 0.125}
    step["contestants"] = {
        "lightly": {**phased(data=0.2, model=0.6, full=0.8), **files},
        "simclr_fast": {**phased(data=0.04, augment=0.06, model=0.3, full=0.4), **files},
    }
    row = row_of(report_tables.train_step_files_case(step, []), "simclr_fast")
    assert row[1:] == ["150", "2.00x", "20.0", "12.5%", "25.0%"]
    of = lambda n, w, seconds: {"n": n, "processes": w, **phased(full=seconds)}
    scaling = {"case": {"processes": [1, 2], "sizes": [100, 200], "d": 8}}
    scaling["contestants"] = {
        name: of(*name, seconds)
        for name, seconds in {(100, 1): 0.1, (100, 2): 0.05, (200, 1): 0.4, (200, 2): 0.1}.items()
    }
    text = report_tables.scaling_case(scaling, [])
    assert row_of(text, "100")[2:] == ["2.00x", ""]
    assert row_of(text, "200")[2:] == ["4.00x", "2.00"]


def test_targets_of_the_other_losses(found: dict) -> None:
    def case(loss: str, rows: int, d: int, **contestants: dict) -> dict:
        return {"case": {"loss": loss, "rows": rows, "d": d}, "contestants": contestants}

    found["losses"] = [
        case("clip", 4096, 128, cpp=timed(1.0), plain=timed(3.5)),
        case("bank", 4096, 128, cpp=timed(1.0), plain=timed(2.0)),
    ]
    found["losses_memory"] = [case("sup_con", 16384, 128, cpp={"peak_bytes": 65 * 2**20}, reference={"absent": "why"})]
    rows = {target.what: (target.measured, target.met) for target in targets(found)}
    assert rows["clip, 4096 x 4096: against plain PyTorch"] == (3.5, True)
    assert rows["bank, 4096 x 4096: against plain PyTorch"] == (2.0, False)
    assert rows["sup_con, 4096 x 4096: against plain PyTorch"] == (None, None)
    assert rows["sup_con, 16384 x 16384, D = 128: peak memory beyond the inputs"] == (65.0, False)
    assert rows["clip, 8192 x 8192, D = 512: peak memory beyond the inputs"] == (None, None)


def test_targets_of_the_step_from_files(found: dict) -> None:
    what = "resnet18 at 224 px from JPEG files"
    rows = {target.what: target for target in targets(found)}
    assert rows[f"{what}: against lightly"].reason == "case not in this run"
    assert rows[f"{what}: loading + augmentation"].met is None
    contestants = {"simclr_fast": timed(1.0, cpu_share_before_model=0.02), "lightly": timed(1.7)}
    found["train_step_files"] = [
        {"case": {"model": model}, "contestants": contestants} for model in ("resnet_mini", "resnet18")
    ]
    rows = {target.what: target for target in targets(found)}
    assert (rows[f"{what}: against lightly"].measured, rows[f"{what}: against lightly"].met) == (1.7, True)
    assert rows[f"{what}: loading + augmentation"].met


def test_a_change_beyond_noise_is_flagged(found: dict) -> None:
    now = copy.deepcopy(found)
    now["ntxent"][0]["contestants"]["cpp"] = timed(1.3, peak_bytes=2**20)
    now["ntxent"][1]["contestants"]["cpp"] = timed(1.05, peak_bytes=9 * 2**20)  # within noise, but larger
    now["augment"][0]["contestants"]["dali"] = timed(0.02)
    text = report_tables.against(now, found, "an earlier machine")
    assert "Then: an earlier machine." in text
    assert "3 changed by more than 10%" in text
    assert "| ntxent N=256, D=128, float32, t=0.1: cpp | 1,000 ms | 1,300 ms | 1.30x, slower |" in text
    assert "| ntxent N=1024, D=128, float32, t=0.1: cpp | 5.00 MiB | 9.00 MiB | 1.80x, larger |" in text
    assert "| augment 256x32->32, all, NHWC: dali | 40.0 ms | 20.0 ms | 0.500x, faster |" in text


def test_the_readme_gets_table_and_plot_once(found: dict, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# A\n\n## Benchmarks\n\n    make bench\n\n## After\n\ntext\n")
    report_readme.write(RESULTS, found, readme)
    page = readme.read_text()
    assert page.startswith("# A\n\n## Benchmarks\n\n    make bench\n\n<!-- benchmarks: ")
    assert page.endswith("<!-- benchmarks: end -->\n\n## After\n\ntext\n")
    row = "| NT-Xent forward + backward, N = 256 | 1,000 ms | 2,000 ms (2.00x) | lightly 4,000 ms (4.00x) | "
    assert f"{row}run `make gpu-check` |" in page
    assert "| augmentation, 256 images, 32 to 32 px | 256,000 views/s | 512 views/s (500x) | albumentations " in page
    assert "CPU a processor, 2 threads, torch 2.14, commit abc, 2026-11-26." in page
    assert (tmp_path / report_readme.PLOT).stat().st_size > 5000
    found["ntxent"][0]["contestants"]["cpp"] = timed(0.5)
    report_readme.write(RESULTS, found, readme)
    assert readme.read_text() == page.replace(
        row,
        row.replace("1,000", "500")
        .replace("2.00x", "4.00x")
        .replace("(4.00x) | lightly 4,000 ms (4.00x)", "(4.00x) | lightly 4,000 ms (8.00x)"),
    )


def test_the_readme_shows_what_the_committed_report_of_a_gpu_says(found: dict, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("## Benchmarks\n")
    report_readme.write(RESULTS, found, readme)
    without = readme.read_text()
    sized = lambda name, **figures: {"contestants": {k: {name: v} for k, v in figures.items()}}
    bench = {
        "ntxent": {
            "N=256 D=128 fp16": sized("both ms", cpp=0.04, triton=0.05, plain=0.08),
            "N=4096 D=128 fp16": {"contestants": {"triton": {"both ms": 0.1, "peak MiB": 12.0}, "plain": {}}},
        },
        "augment": {
            "256 x 256 px to 224 px, bf16": {
                "contestants": {"cpp": {"views/s": 4e5}, "torchvision v2, a batch": {"views/s": 2e4}}
            }
        },
        "steps": {"resnet50": {"images/s": 3300.0}},
    }
    machine = {"gpu": {"name": "a card"}, "versions": {"torch": "2.11", "triton": "3.6"}}
    check = {"check": {"machine": machine, "commit": "abc", "began": "2026-11-26 16:00:00"}, "bench": bench}
    committed = tmp_path / report_readme.GPU_CHECK
    committed.parent.mkdir(parents=True)
    committed.write_text(json.dumps(check))
    report_readme.renew_gpu_column(readme)
    page = readme.read_text()
    last_cells = [line.split(" | ")[-1].removesuffix(" |") for line in page.splitlines() if line.startswith("| ")][1:]
    assert last_cells[0] == "cpp 0.0400 ms, fp16 (2.00x)"
    assert last_cells[1] == ""  # not measured there
    assert last_cells[2:4] == ["triton 0.100 ms, fp16", "triton 12.0 MiB"]
    assert last_cells[5] == "cpp 400,000 views/s (20.0x)"
    assert "GPU: a card, torch 2.11, triton 3.6, commit abc, 2026-11-26; device time" in page
    report_readme.write(RESULTS, found, readme)
    assert readme.read_text() == page
    committed.unlink()
    report_readme.renew_gpu_column(readme)
    assert readme.read_text() == without


def test_the_readme_is_left_alone_where_the_run_lacks_a_case(found: dict, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("## Benchmarks\n")
    del found["augment"][1]
    with pytest.raises(SystemExit, match="lack the case augmentation, 64 x 256 to 224"):
        report_readme.write(RESULTS, found, readme)
    on_gpu = {**RESULTS, "machine_info": {"simclr_fast": {**MACHINE, "device": "cuda", "gpu": "a GPU"}}}
    with pytest.raises(SystemExit, match="takes the results of a CPU"):
        report_readme.write(on_gpu, found, readme)
    assert readme.read_text() == "## Benchmarks\n"
