"""`embed`: features under the right names in every format, however often it was stopped, and what it refuses."""

import dataclasses
import glob
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import numpy
import numpy as np
import pandas
import pytest
import safetensors
import torch
from PIL import Image

from simclr_fast.api import PretrainedRun
from simclr_fast.cli import main
from simclr_fast.data.unreadable import BadImageError
from simclr_fast.errors import ConfigError
from simclr_fast.evaluation import embedding, feature_set
from simclr_fast.evaluation.embed import digest_of_weights
from simclr_fast.evaluation.export import export_weights
from simclr_fast.evaluation.features import preprocess_of
from simclr_fast.evaluation.run import Run
from tests.data.packing import StoppedError, failing
from tests.evaluation.conftest import color_config, write_run
from tests.evaluation.embedding import contents, embedded, truth

DOCS = Path(__file__).parents[2] / "docs" / "embed.md"
MODULES = {
    "glob": glob,
    "json": json,
    "numpy": numpy,
    "pandas": pandas,
    "datasets": datasets,
    "safetensors": safetensors,
}
LINES = dict(
    zip(("parquet", "datasets", "npy", "safetensors"), re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S))
)


@pytest.mark.parametrize(
    ("form", "dtype", "lines"),
    [
        ("parquet", "float32", "parquet"),
        ("parquet", "float16", "datasets"),
        ("npy", "float32", "npy"),
        ("npy", "float16", "npy"),
        ("safetensors", "float32", "safetensors"),
    ],
)
def test_the_documented_lines_load_what_was_embedded(
    form: str,
    dtype: str,
    lines: str,
    color_run: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch,
) -> None:
    assert embedded(color_run, photos, tmp_path / "features", "--format", form, "--dtype", dtype) == 0
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    loaded = dict(MODULES)
    exec(LINES[lines], loaded)
    names, features, codes = truth(color_run, photos)
    assert list(loaded["names"]) == names
    assert names[0] == "train/cat/0.png"
    found = np.asarray(loaded["features"])
    assert found.dtype == (np.float32 if lines == "datasets" else np.dtype(dtype)) or found.dtype == np.dtype(dtype)
    np.testing.assert_allclose(found, features, rtol=1e-3 if dtype == "float16" else 1e-5, atol=1e-5)
    if lines == "parquet":
        assert loaded["frame"]["label"].tolist() == codes
        assert loaded["frame"]["class"].tolist() == [("cat", "dog")[code] for code in codes]
        assert set(loaded["frame"]["split"]) == {"train", "test"}
    if lines == "npy":
        assert numpy.load("features/labels.npy").tolist() == codes
    if lines == "safetensors":
        assert [label for shard in loaded["shards"] for label in shard.get_tensor("labels").tolist()] == codes


@pytest.mark.parametrize(("form", "noted"), [("parquet", False), ("npy", False), ("npy", True), ("safetensors", False)])
def test_stopped_at_every_shard_it_goes_on_to_the_same_bytes(
    form: str, noted: bool, color_run: Path, photos: Path, tmp_path: Path, monkeypatch
) -> None:
    """noted: when it stops, the shard's files are not only written, the journal knows of them."""
    monkeypatch.setattr("simclr_fast.evaluation.embed._neighbours", lambda *_: [])
    options = ("--format", form, "--duplicates", "None")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert embedded(color_run, photos, whole, *options) == 0
    shards = len(json.loads((whole / "embedded.json").read_text())["shards"])
    assert shards == 4
    stop = after if noted else lambda real, limit: failing(real, limit, StoppedError())
    for journal in range(2, shards + 3):  # the first notes what is to be done, the last that all is
        with monkeypatch.context() as patch:
            patch.setattr(feature_set, "write_checked", stop(feature_set.write_checked, journal))
            with pytest.raises(StoppedError):
                embedded(color_run, photos, stopped, *options)
        assert (stopped / "embedding.json").exists()
        assert embedded(color_run, photos, stopped, *options) == 0
        assert contents(stopped) == contents(whole)
        shutil.rmtree(stopped)


def after(real, limit: int):
    """As `real`, but after its call number `limit` it is over."""
    calls = 0

    def call(*arguments):
        nonlocal calls
        calls += 1
        real(*arguments)
        if calls == limit:
            raise StoppedError

    return call


def test_killed_it_goes_on(color_run: Path, photos: Path, tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from simclr_fast.evaluation import feature_set
from tests.evaluation.embedding import embedded
real, calls = feature_set.write_checked, []
def write(*given):
    calls.append(1)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    real(*given)
feature_set.write_checked = write
embedded(Path({str(color_run)!r}), Path({str(photos)!r}), Path({str(tmp_path / "features")!r}))
"""
    killed = subprocess.run([sys.executable, "-c", program], cwd=DOCS.parents[1], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    left = json.loads((tmp_path / "features" / "embedding.json").read_text())
    assert len(left["shards"]) == 2
    assert embedded(color_run, photos, tmp_path / "features") == 0
    assert embedded(color_run, photos, tmp_path / "whole") == 0
    assert contents(tmp_path / "features") == contents(tmp_path / "whole")


@pytest.fixture
def begun(color_run: Path, photos: Path, tmp_path: Path, monkeypatch) -> Path:
    """Features of which two shards are whole."""
    with monkeypatch.context() as patch:
        patch.setattr(feature_set, "write_checked", failing(feature_set.write_checked, 4, StoppedError()))
        with pytest.raises(StoppedError):
            embedded(color_run, photos, tmp_path / "features")
    return tmp_path / "features"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--format", "npy"), "made with format parquet, and this is npy"),
        (("--dtype", "float16"), "made with dtype float32, and this is float16"),
        (("--shard-size", "7"), "made with shard_size 6, and this is 7"),
        (("--batch-size", "5"), "made with batch_size 4, and this is 5"),
        (("--amp-dtype", "bfloat16"), "made with amp_dtype float32, and this is bfloat16"),
        (("--split", "test"), "made with split all, and this is test"),
    ],
)
def test_other_options_are_refused(
    options: tuple[str, str],
    said: str,
    color_run: Path,
    photos: Path,
    begun: Path,
    capsys,
) -> None:
    before = contents(begun)
    assert embedded(color_run, photos, begun, *options) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert contents(begun) == before


def test_autocast_computes_in_the_type_asked_for(color_run: Path) -> None:
    run, views = Run.open(color_run), torch.rand(2, 3, 16, 16)
    of = lambda dtype: embedding.Encoder(run.encoder(), preprocess_of(run), 3, torch.device("cpu"), dtype)(views)
    with torch.no_grad():
        torch.testing.assert_close(of(None), run.encoder()(views))
    half = of(torch.bfloat16)
    assert half.dtype == torch.float32
    assert 0 < (half - of(None)).abs().max() < 0.1 * half.abs().max()


def test_features_of_another_view_are_others(color_run: Path) -> None:
    run = Run.open(color_run)
    of = lambda **changed: digest_of_weights(
        dataclasses.replace(
            run, config=dataclasses.replace(run.config, augment=dataclasses.replace(run.config.augment, **changed))
        )
    )
    assert len({of(), of(mean=(0.1,)), of(std=(0.1,)), of(size=12)}) == 4
    assert of() == of(scale=(0.5, 1.0)), "training's views do not count"


def test_other_images_and_other_weights_are_refused(
    color_run: Path,
    photos: Path,
    begun: Path,
    tmp_path: Path,
    capsys,
) -> None:
    other = tmp_path / "other run"
    write_run(other, color_config(), channels=3, seed=6)
    changed = shutil.copytree(photos, tmp_path / "changed")
    assert embedded(other, photos, begun) == 2
    assert re.search(r"made with weights [0-9a-f]{16}, and this is [0-9a-f]{16}", capsys.readouterr().err)
    assert embedded(color_run, changed, begun) == 0, "where the images lie does not count"
    (begun / "embedded.json").rename(begun / "embedding.json")
    (changed / "train" / "cat" / "0.png").rename(changed / "train" / "cat" / "00.png")
    (changed / "train" / "cat" / "notes.txt").write_text("not an image")
    assert embedded(color_run, changed, begun) == 2
    assert not (begun / "ignored.txt").exists(), "nothing is listed of other images"
    assert "its images or classes are not those that were there" in capsys.readouterr().err


def test_other_pixels_under_the_same_name_are_refused(color_run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    changed = tmp_path / "changed"
    changed.mkdir()
    for number in range(2):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(changed / f"{number}.bmp")
    assert embedded(color_run, changed, tmp_path / "out", "--duplicates", "None") == 0
    os.utime(changed / "1.bmp", ns=(1, 1))
    assert embedded(color_run, changed, tmp_path / "out", "--duplicates", "None") == 2
    assert "are not those that were there" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["features-00000-of-00004.parquet", "embedding.json"])
def test_damage_is_found(name: str, color_run: Path, photos: Path, begun: Path, capsys) -> None:
    data = bytearray((begun / name).read_bytes())
    data[len(data) // 2] ^= 1
    (begun / name).write_bytes(data)
    assert embedded(color_run, photos, begun) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.search(rf"{begun / name}: damaged.*remove {begun}", line)


def test_a_folder_with_other_files_is_refused(color_run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "mine.txt").write_text("mine")
    assert embedded(color_run, photos, tmp_path / "features") == 2
    assert "the folder is not empty (mine.txt is there)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--query", "nothing.jpg"), "--query nothing.jpg: "),
        (("--query", str(DOCS)), "Unsupported image file"),
        (("--split", "labelled"), "--split labelled: the data set has only train, test"),
        (("--neighbours", "0"), "--neighbours 0: pass an integer from 1 to 50"),
        (("--shard-size", "0"), "--shard-size 0: pass an integer from 1 to 100000"),
        (("--duplicates", "1.5"), "--duplicates 1.5: pass a fraction in (0, 1)"),
        (("--batch-size", "0"), "--batch-size 0: pass an integer >= 1"),
        (("--workers", "-1"), "--workers -1: pass an integer "),
    ],
)
def test_bad_options_are_one_line(
    options: tuple[str, str],
    said: str,
    color_run: Path,
    photos: Path,
    tmp_path: Path,
    capsys,
) -> None:
    assert embedded(color_run, photos, tmp_path / "features", *options) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert [said in line for line in lines] == [True]
    assert not list((tmp_path / "features").glob("features*"))


def test_an_export_embeds_as_its_run(color_run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    """The same bytes, and the one goes on with what the other began."""
    (tmp_path / "export").mkdir()
    export_weights(Run.open(color_run), tmp_path / "export")
    assert embedded(color_run, photos, tmp_path / "of run") == 0
    for path in (tmp_path / "export", tmp_path / "export" / "backbone.safetensors"):
        assert embedded(path, photos, tmp_path / "of run") == 0
        assert "embedded already" in capsys.readouterr().out
    assert main(["embed", "--checkpoint", str(tmp_path / "export")]) == 2
    assert "--data: an exported backbone does not say which images" in capsys.readouterr().err


def test_a_disk_that_is_gone_stops_it(color_run: Path, photos: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """Not one of its images is noted as unreadable, and the same command goes on once it is back."""
    real = embedding.AllImages.load

    def gone(self, number: int):
        if number < 8:
            return real(self, number)
        try:
            raise OSError(5, "Input/output error")
        except OSError as error:
            raise BadImageError(f"image {number}: {error}") from error

    with monkeypatch.context() as patch:
        patch.setattr(embedding.AllImages, "load", gone)
        assert embedded(color_run, photos, tmp_path / "features", "--shard-size", "20") == 1
    assert "10 images in a row that the disk refuses" in capsys.readouterr().err
    assert embedded(color_run, photos, tmp_path / "features", "--shard-size", "20") == 0
    assert json.loads((tmp_path / "features" / "embed.json").read_text())["results"]["left_out"] == []


def test_the_call_returns_what_the_file_holds(color_run: Path, photos: Path, tmp_path: Path) -> None:
    sizes = {"shard_size": 50, "neighbours": 3, "workers": 0, "duplicates": None}
    query = photos / "train" / "cat" / "0.png"
    content = PretrainedRun(color_run).embed(data=photos, output=str(tmp_path / "out"), query=[str(query)], **sizes)
    assert content == json.loads((tmp_path / "out" / "embed.json").read_text())
    (answer,) = content["results"]["neighbours"]
    assert answer["query"] == str(query)
    assert len(answer["neighbours"]) == 3
    with pytest.raises(ConfigError, match="--split 'dev': pass one of all, train, labelled, test"):
        PretrainedRun(color_run).embed(data=photos, output=tmp_path / "other", split="dev")
