"""Published protocols: the constants of each as its source has them, what is given wins, and the commands follow."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from simclr_fast.cli import main, parse
from simclr_fast.data import Dataset, ImageArrays
from simclr_fast.evaluation import classifier, finetune, linear, probes, session
from simclr_fast.evaluation import knn as knn_command
from simclr_fast.evaluation.features import LabelledBatches, embed, encoders, preprocess_of
from simclr_fast.evaluation.linear import share_of_peak
from simclr_fast.evaluation.options import KnnOptions, check
from simclr_fast.evaluation.penalty_sweep import Sweep
from simclr_fast.evaluation.protocols import PROTOCOLS, described
from simclr_fast.evaluation.results import stem_of
from simclr_fast.evaluation.run import Run
from simclr_fast.evaluation.session import Session
from simclr_fast.evaluation.splits import hold_out
from simclr_fast.evaluation.tables import top5_accuracy
from simclr_fast.process import Process

CPU = Process(0, 1, torch.device("cpu"))
CLASSES = 6


def options_of(command: str, *arguments: str) -> Any:
    _, options = parse([command, "--checkpoint", "x", *arguments])
    check(options)
    return options


@pytest.mark.parametrize(
    ("command", "protocol", "expected"),
    [
        # simclr_fast's own, as docs/evaluation.md has them.
        ("knn", "own", {"knn_k": (1, 5, 10, 20, 50, 100, 200), "knn_t": 0.1}),
        ("linear", "own", {"method": "both", "batch_size": 256, "epochs": None, "held_out": 0.1}),
        ("finetune", "own", {"fractions": (0.01, 0.1, 1.0), "lr_base": 0.05, "batch_size": None, "epochs": None}),
        # Chen et al. 2020, B.6: "a larger learning rate of 1.6 (following LearningRate = 0.1 x BatchSize / 256) and
        # longer training of 90 epochs", batches of 4096 as in B.5.
        ("linear", "simclr", {"method": "both", "epochs": 90, "batch_size": 4096, "lr_base": (0.1,)}),
        # Chen et al. 2020, B.5: LearningRate = 0.05 x BatchSize / 256 = 0.8.
        ("finetune", "simclr", {"fractions": (0.01, 0.1), "batch_size": 4096, "lr_base": 0.05, "min_steps": 0}),
        # lightly, benchmarks/imagenet/resnet50/{knn_eval,linear_eval,finetune_eval}.py.
        ("knn", "lightly", {"knn_k": (200,), "knn_t": 0.1}),
        ("linear", "lightly", {"method": "sgd", "epochs": 90, "batch_size": 256, "lr_base": (0.1,)}),
        ("finetune", "lightly", {"fractions": (1.0,), "batch_size": 256, "lr_base": 0.05, "min_steps": 0}),
        # solo-learn, solo/utils/knn.py and scripts/linear/imagenet-100/simclr.yaml.
        ("knn", "solo-learn", {"knn_k": (20,), "knn_t": 0.07}),
        ("linear", "solo-learn", {"method": "sgd", "epochs": 100, "batch_size": 256, "lr_base": (1.0,)}),
    ],
)
def test_the_options_are_those_of_the_source(command: str, protocol: str, expected: dict[str, Any]) -> None:
    options = options_of(command, "--protocol", protocol)
    assert {name: getattr(options, name) for name in expected} == expected
    assert described(options) == ("" if protocol == "own" else f"; protocol {protocol}")


def test_how_classifiers_are_trained_is_that_of_the_source() -> None:
    rules = {name: (one.nesterov, one.standardize) for name, one in PROTOCOLS["linear"].items()}
    assert rules == {
        "own": (True, True),
        "simclr": (True, False),  # B.5: Nesterov's momentum of 0.9
        "lightly": (False, False),  # torch's SGD, momentum 0.9
        "solo-learn": (False, False),
    }
    assert {name: one.nesterov for name, one in PROTOCOLS["finetune"].items()} == {
        "own": True,
        "simclr": True,
        "lightly": False,
    }
    views = {
        (command, name): one.crop for command in ("linear", "finetune") for name, one in PROTOCOLS[command].items()
    }
    assert {key for key, crop in views.items() if crop is None} == {("linear", "own"), ("finetune", "own")}
    # torchvision.transforms.RandomResizedCrop(size) and RandomHorizontalFlip().
    expected = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "hflip": 0.5}
    assert all(crop == expected for crop in views.values() if crop is not None)


def test_solo_learns_rate_falls_after_60_and_80_of_100_epochs() -> None:
    rule, steps = PROTOCOLS["linear"]["solo-learn"], 100 * 7
    shares = [share_of_peak(rule, step, steps) for step in (0, 419, 420, 559, 560, 699)]
    assert shares == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_what_is_given_wins_and_the_title_says_so() -> None:
    options = options_of("linear", "--protocol", "lightly", "--epochs", "2", "--lr-base", "0.1", "0.3")
    assert (options.epochs, options.lr_base, options.batch_size) == (2, (0.1, 0.3), 256)
    assert described(options) == "; protocol lightly, but --epochs 2, --lr-base 0.1 0.3"
    assert described(options_of("knn", "--protocol", "solo-learn", "--knn-t", "0.07")) == "; protocol solo-learn"
    assert KnnOptions(checkpoint=Path("x"), protocol="lightly").knn_k == (200,), "as calls of the package make them"
    assert options_of("knn", "--knn-k", "3").knn_t == 0.1
    epochs = options_of("finetune", "--protocol", "simclr", "--fractions", "0.1", "--epochs", "1")
    assert described(epochs, epochs=(30,)) == "; protocol simclr, but --epochs 1"
    assert described(epochs, epochs=(1,)) == "; protocol simclr"
    held_out = options_of("linear", "--protocol", "simclr", "--method", "lbfgs", "--held-out", "0.2")
    assert described(held_out) == "; protocol simclr, but --held-out 0.2"
    both = options_of("linear", "--protocol", "lightly", "--method", "both", "--penalty-c", "0.1")
    assert described(both) == "; protocol lightly, but --method both, --penalty-c 0.1"


@pytest.mark.parametrize(
    "arguments",
    [
        ["linear", "--protocol", "simclr", "--method", "sgd"],
        ["linear", "--protocol", "simclr", "--method", "lbfgs"],
        ["finetune", "--protocol", "simclr", "--fractions", "0.1"],
    ],
)
def test_a_part_of_what_a_protocol_does_is_that_protocol(arguments: list[str]) -> None:
    assert described(options_of(*arguments)) == "; protocol simclr"
    other = ["--fractions", "0.1", "0.5"] if arguments[0] == "finetune" else ["--protocol", "lightly"]
    if arguments[-1] != "lbfgs":
        assert ("but --fractions 0.1 0.5" in described(options_of(*arguments, *other))) == ("finetune" in arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--protocol", "lightly", "--method", "lbfgs"], "--method lbfgs: --protocol lightly has no penalties"),
        (["--protocol", "solo-learn", "--method", "both"], "--method both: --protocol solo-learn has no penalties"),
        (["--method", "sgd", "--penalty-c", "1"], "--penalty-c 1.0: --method sgd does not use it"),
        (["--method", "lbfgs", "--epochs", "5"], "--epochs 5: --method lbfgs does not use it"),
        (
            ["--protocol", "simclr", "--method", "lbfgs", "--lr-base", "1", "2"],
            "--lr-base 1.0 2.0: --method lbfgs does",
        ),
        (["--protocol", "lightly", "--held-out", "0.2"], "--held-out 0.2: with one value of each option nothing is"),
    ],
)
def test_options_without_effect_are_refused(arguments: list[str], said: str, capsys) -> None:
    assert main(["linear", "--checkpoint", "x", *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("command", "protocol"), [("knn", "simclr"), ("finetune", "solo-learn")])
def test_what_was_never_published_is_refused(command: str, protocol: str, capsys) -> None:
    assert main([command, "--checkpoint", "x", "--protocol", protocol]) == 2
    known = ", ".join(PROTOCOLS[command])
    assert f"--protocol {protocol}: it has no {command}; pass one of {known}" in capsys.readouterr().err


@pytest.fixture(scope="module")
def data() -> Dataset:
    """Squares of CLASSES levels of grey."""
    labels = torch.arange(36) % CLASSES
    images = 25 * labels.view(-1, 1, 1, 1) + torch.randint(0, 60, (36, 1, 28, 28), generator=torch.manual_seed(0))
    source = ImageArrays(images.byte(), labels)
    return Dataset(source, source, source.subset(torch.arange(12)), tuple("abcdef"))


def results_of(module: Any, data: Dataset, folder: Path, output: Path, monkeypatch, *arguments: str) -> dict[str, Any]:
    monkeypatch.setattr(session, "load_dataset", lambda _: data)
    name, options = parse([*arguments[:1], "--checkpoint", str(folder), *arguments[1:]])
    module.main(Session(name, options, Run.open(folder), CPU, output, Console(quiet=True)))
    return json.loads((output / f"{stem_of(name, options)}.json").read_text())


def test_linear_follows_the_protocol(data: Dataset, run_folder: Path, tmp_path: Path, monkeypatch) -> None:
    """All images are trained on, by theirs crops, on features as they are; nothing is left to choose."""
    seen: list[tuple[Any, ...]] = []
    train_probes, batches = linear.train_probes, linear.LabelledBatches

    def recorded(encoder, features, batches, classes, **options):
        seen.append((encoder, options))
        return train_probes(encoder, features, batches, classes, **{**options, "steps": 2})

    monkeypatch.setattr(linear, "train_probes", recorded)
    sources = []
    monkeypatch.setattr(linear, "LabelledBatches", lambda *given: sources.append(given) or batches(*given))
    found = results_of(linear, data, run_folder, tmp_path, monkeypatch, "linear", "--protocol", "solo-learn")
    assert found["tables"][0]["title"] == "Linear classifier, all labels: test accuracy (%); protocol solo-learn"
    assert found["options"]["protocol"] == "solo-learn"
    assert found["options"]["lr_base"] == [1.0]
    assert set(found["results"]) == {"sgd"}
    assert found["results"]["sgd"]["simclr"]["held_out_accuracy"] is None
    assert [found["results"]["sgd"]["simclr"][key] for key in ("images", "batch_size")] == [36, 36]
    for (encoder, options), given in zip(seen, sources, strict=True):
        assert options["steps"] == 100, "36 images are one batch, and an epoch a step"
        assert options["lr_base"] == (1.0,)
        assert options["protocol"] == PROTOCOLS["linear"]["solo-learn"]
        assert isinstance(encoder[1], torch.nn.Identity)
        assert given[0] is data.labelled
        assert given[5] == PROTOCOLS["linear"]["solo-learn"].crop


@pytest.mark.parametrize(("recipe", "epochs"), [("demo", 30), ("photos", 90)])
def test_linear_by_default(
    recipe: str, epochs: int, data: Dataset, run_folder: Path, tmp_path: Path, monkeypatch
) -> None:
    """As docs/evaluation.md has it: 90 epochs, and 30 on the demo; every random choice follows from --seed."""
    seen, chosen, seeds, batches = [], [], [], linear.LabelledBatches
    zero = probes.LinearClassifier(torch.zeros(CLASSES, 1), torch.zeros(CLASSES))

    def record(encoder, features, batches, classes, **options):
        seen.append((len(batches.labels), options["steps"], options["lr_base"], encoder[1]))
        of_width = dataclasses.replace(zero, weight=zero.weight.expand(-1, features))
        return [linear.Probe(lr, of_width) for lr in options["lr_base"]]

    def sweep(features, labels, candidates, *, held_out, seed, device):
        chosen.append((candidates, held_out, seed))
        return Sweep(0.1, 0.5, dataclasses.replace(zero, weight=zero.weight.expand(-1, features.shape[1])))

    monkeypatch.setattr(linear, "train_probes", record)
    monkeypatch.setattr(linear, "LabelledBatches", lambda *given: seeds.append(given[3]) or batches(*given))
    monkeypatch.setattr(linear, "sweep_linear", sweep)
    opened = Run.open
    with_recipe = lambda run: dataclasses.replace(run, config=dataclasses.replace(run.config, recipe=recipe))
    monkeypatch.setattr(Run, "open", staticmethod(lambda path: with_recipe(opened(path))))
    held_out = ("--seed", "3", "--held-out", "0.5") if recipe == "demo" else ()
    found = results_of(linear, data, run_folder, tmp_path, monkeypatch, "linear", *held_out)["results"]
    share, seed = (0.5, 3) if held_out else (0.1, 0)
    kept, asked = hold_out(data.labelled.labels, share, seed)
    assert [one[:3] for one in seen] == [(len(kept), epochs, (0.003, 0.01, 0.03, 0.1, 0.3, 1.0))] * 3
    assert chosen == [((1e-4, 1e-3, 1e-2, 1e-1, 1.0), share, seed)] * 3
    assert seeds == [seed] * 3
    for (*_, scale), encoder in zip(seen, encoders(with_recipe(opened(run_folder))).values(), strict=True):
        features = embed(encoder, data.labelled, preprocess_of(opened(run_folder)), CPU.device)[kept]
        torch.testing.assert_close(scale.mean, features.mean(dim=0))
    class_0 = (data.labelled.labels[asked] == 0).float().mean().item()
    assert found["sgd"]["simclr"]["held_out_accuracy"] == pytest.approx(class_0)
    assert found["sgd"]["simclr"]["lr_base"] == 0.003, "of equals the first"


def test_lbfgs_of_the_paper_sees_features_as_they_are(data: Dataset, run_folder: Path, tmp_path, monkeypatch) -> None:
    given = []
    sweep = linear.sweep_linear
    monkeypatch.setattr(linear, "sweep_linear", lambda *a, **o: given.append(a) or sweep(a[0], a[1], a[2][:2], **o))
    arguments = ("linear", "--protocol", "simclr", "--method", "lbfgs", "--held-out", "0.4")
    found = results_of(linear, data, run_folder, tmp_path, monkeypatch, *arguments)
    run = Run.open(run_folder)
    for (features, labels, candidates), encoder in zip(given, encoders(run).values(), strict=True):
        assert torch.equal(features, embed(encoder, data.labelled, preprocess_of(run), CPU.device))
        assert torch.equal(labels, data.labelled.labels)
        assert len(candidates) == 45
    assert found["tables"][0]["title"].endswith("; protocol simclr, but --held-out 0.4")
    assert found["protocol"] == "protocol simclr, but --held-out 0.4"


def test_crops_of_a_protocol_take_the_place_of_the_recipes(data: Dataset, run_folder: Path) -> None:
    own, theirs = (
        LabelledBatches(data.labelled, 8, Run.open(run_folder), 0, CPU, crop) for crop in (None, {"hflip": 1.0})
    )
    (images, labels), *_ = own.steps(1)
    (flipped, again), *_ = theirs.steps(1)
    assert torch.equal(labels, again)
    torch.testing.assert_close(flipped, images.flip(-1), atol=1e-4, rtol=0)  # the demo flips nothing


def test_finetune_follows_the_protocol(data: Dataset, run_folder: Path, tmp_path: Path, monkeypatch) -> None:
    trained, crops, batches = [], [], classifier.LabelledBatches
    monkeypatch.setattr(classifier, "train_classifier", lambda model, b, **o: trained.append(o) or model.eval())
    monkeypatch.setattr(classifier, "LabelledBatches", lambda *given: crops.append(given[5]) or batches(*given))
    for protocol, steps, batches_of in (("lightly", [30], [36]), ("simclr", [60, 30], [6, 6])):
        arguments = ("finetune", "--protocol", protocol, "--init", "checkpoint", "--draws", "1")
        found = results_of(finetune, data, run_folder, tmp_path, monkeypatch, *arguments)
        assert [one["steps"] for one in trained] == steps, "of batches that hold all images: epochs, on the demo, too"
        assert [one["lr"] for one in trained] == pytest.approx([0.05 * batch / 256 for batch in batches_of])
        assert [one["batch_size"] for one in found["results"].values()] == batches_of
        assert {one["nesterov"] for one in trained} == {protocol == "simclr"}
        assert all(crop == PROTOCOLS["finetune"][protocol].crop for crop in crops)
        assert found["tables"][0]["title"].endswith(f"; protocol {protocol}")
        trained.clear()


def test_knn_gives_top5_where_twenty_or_more_vote(data: Dataset, run_folder: Path, tmp_path: Path, monkeypatch) -> None:
    found = results_of(knn_command, data, run_folder, tmp_path, monkeypatch, "knn", "--knn-k", "5", "19", "20")
    assert set(found["results"]["top5_accuracy"]) == {"20"}
    run = Run.open(run_folder)
    for name, encoder in encoders(run).items():
        bank, queries = (embed(encoder, part, preprocess_of(run), CPU.device) for part in (data.labelled, data.test))
        similarity, index = probes.nearest(bank, queries, 20)
        votes = torch.zeros(12, CLASSES).scatter_add_(1, data.labelled.labels[index], torch.exp(similarity / 0.1))
        best = votes.argsort(dim=1, descending=True)[:, :5]
        right = ((best == data.test.labels[:, None]) & (votes.gather(1, best) > 0)).any(dim=1).float().mean().item()
        assert found["results"]["top5_accuracy"]["20"][name] == pytest.approx(right)
    rows = [row[0] for row in found["tables"][0]["rows"]]
    assert rows[rows.index("test, k = 20") + 1] == "test, k = 20, top-5"
    assert sum("top-5" in row for row in rows) == 1


def test_of_fewer_images_than_k_all_vote_and_the_row_says_so(
    data: Dataset, run_folder: Path, tmp_path: Path, monkeypatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Session, "say", lambda self, text: said.append(text))
    with monkeypatch.context() as patch:
        patch.setattr(probes, "CHOICE_ROWS", 12)
        found = results_of(knn_command, data, run_folder, tmp_path, monkeypatch, "knn", "--knn-k", "35")
    assert said == []
    assert found["results"]["choosing_images"] == 12
    assert all("12 of the 36 training images" in table["title"] for table in found["tables"])
    found = results_of(knn_command, data, run_folder, tmp_path, monkeypatch, "knn", "--knn-k", "35", "100", "200")
    assert said == ["--knn-k 200: there are only 36 training images, so that all of them vote"]
    assert [set(found["results"][split]) for split in ("test", "train")] == [{"35", "36", "chosen"}, {"35"}]
    found = results_of(knn_command, data, run_folder, tmp_path, monkeypatch, "knn", "--protocol", "lightly")
    assert found["results"]["chosen_k"]["simclr"] == 36
    rows = {row[0]: row[-1] for row in found["tables"][0]["rows"]}
    assert set(rows) == {"test, chosen k", "test, k = 36 (all)", "test, k = 36 (all), top-5", "train, k = 35 (all)"}
    assert rows["test, chosen k"] == f"{rows['test, k = 36 (all)']} (k = 36)"


def test_a_class_without_a_vote_is_no_answer() -> None:
    votes = F.one_hot(torch.tensor([2, 2]), 7).float().log()  # 0 for class 2, -inf for all others
    assert top5_accuracy(votes, torch.tensor([2, 0])) == 0.5


def test_protocols_name_options_of_their_commands() -> None:
    for command, of_command in PROTOCOLS.items():
        _, options = parse([command, "--checkpoint", "x"])
        names = {field.name for field in dataclasses.fields(options)}
        assert all(set(one.values) <= names for one in of_command.values())
        assert of_command["own"].values.keys() <= {*names, "knn_k"}
    assert PROTOCOLS["knn"]["own"].values == {"knn_k": probes.KNN_K, "knn_t": probes.KNN_T}
