"""The HTML page: everything of a run in it, nothing fetched, nothing executed; and the tables of the other commands."""

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from simclr_fast.cli import main
from simclr_fast.evaluation import page
from simclr_fast.evaluation.tables import ResultTable, percent, spread
from simclr_fast.recipes import RECIPES
from tests.evaluation.conftest import write_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the demo's own options, whose images of 16 pixels take a third of the time of those of 28."""
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, RECIPES["demo"])
    return folder


@pytest.fixture(scope="module")
def commands_folder(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the cheap commands, then the page."""
    folder = tmp_path_factory.mktemp("evaluation")
    common = ["--output", str(folder), "--threads", "1"]
    few = ["--per-class", "1", "3", "--draws", "2"]
    linear = ["--epochs", "1", "--lr-base", "1e-6", "0.1", "--penalty-c", "0.01", "0.1"]
    assert main(["knn", "--checkpoint", str(run_folder), "--knn-k", "1", "5", *common]) == 0
    assert main(["few-label", "--checkpoint", str(run_folder), *few, *common]) == 0
    assert main(["linear", "--checkpoint", str(run_folder), *linear, *common]) == 0
    metrics = [{"step": step, "loss": 5.0 - step / 10, "contrastive_accuracy": 0.1, "lr": 1e-3} for step in (1, 2, 3)]
    metrics.insert(2, {"step": 2, "warning": "chance", "message": "nothing is learnt <yet>"})
    (run_folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    assert main(["report", str(run_folder), *common]) == 0
    return folder


def test_knn_results(commands_folder: Path) -> None:
    results = json.loads((commands_folder / "knn.json").read_text())["results"]
    assert set(results) == {"test", "train", "top5_accuracy", "chosen_k", "choosing_images", "per_class"}
    assert results["choosing_images"] == 4000, "all, where they are no more than 5,000"
    assert set(results["test"]) == {"1", "5", "chosen"}
    for encoder, k in results["chosen_k"].items():
        by_k = {k: results["train"][k][encoder] for k in ("1", "5")}
        assert by_k[str(k)] == max(by_k.values()), "the training images choose"
        assert results["test"]["chosen"][encoder] == results["test"][str(k)][encoder]
        by_class = results["per_class"][encoder]
        assert sum(by_class) / len(by_class) == pytest.approx(results["test"]["chosen"][encoder])  # 100 of each class
    assert 0.94 < results["test"]["1"]["raw"] < 0.97  # 4,000 labelled digits, raw pixels: 95.4%
    assert 0.93 < results["train"]["1"]["raw"] < 0.97  # and not 100%, which an image finding itself would give


def test_few_label_results(commands_folder: Path) -> None:
    results = json.loads((commands_folder / "few-label.json").read_text())["results"]
    for probe in ("linear", "1nn"):
        assert results[probe]["1"]["raw"]["mean"] < results[probe]["3"]["raw"]["mean"]
        assert results[probe]["3"]["raw"]["std"] > 0
    top5 = results["linear_top5"]["3"]["raw"]["mean"]
    assert results["linear"]["3"]["raw"]["mean"] + 0.1 < top5 < 1
    assert (commands_folder / "few-label.png").read_bytes().startswith(b"\x89PNG")


def test_linear_results(commands_folder: Path) -> None:
    results = json.loads((commands_folder / "linear.json").read_text())["results"]
    assert results["lbfgs"]["raw"]["accuracy"] > 0.88
    assert results["lbfgs"]["raw"]["penalty_c"] in (0.01, 0.1)
    assert results["sgd"]["raw"]["accuracy"] > 0.5
    assert results["sgd"]["raw"]["lr_base"] == 0.1
    assert results["sgd"]["random_init"]["accuracy"] > 0.15
    for method in ("sgd", "lbfgs"):
        raw = results[method]["raw"]
        assert raw["accuracy"] + 0.03 < raw["top5_accuracy"] <= 1
        assert sum(raw["per_class"]) / 10 == pytest.approx(raw["accuracy"])


def test_page_holds_every_section(commands_folder: Path) -> None:
    text = (commands_folder / "report.html").read_text()
    parsed = Page(text)
    assert not parsed.open, "every tag is closed"
    content = " ".join(parsed.text)
    for expected in (
        "Learning curves",
        "Warnings",
        "nothing is learnt <yet>",
        "Map of the embeddings",
        "Nearest neighbours",
        "Confusions",
        "Nearest-neighbour classification",
        "Few labels",
        "Linear classification",
        "temperature",
    ):
        assert expected in content
    anchors = {attributes["id"] for _, attributes in parsed.tags if "id" in attributes}
    links = {attributes["href"][1:] for tag, attributes in parsed.tags if tag == "a"}
    assert links == anchors


def test_page_fetches_and_executes_nothing(commands_folder: Path) -> None:
    text = (commands_folder / "report.html").read_text()
    parsed = Page(text)
    assert not {"script", "iframe", "object", "embed"} & {tag for tag, _ in parsed.tags}
    for tag, attributes in parsed.tags:
        for name in ("src", "href"):
            if name in attributes:
                assert attributes[name].startswith(("data:", "#")), (tag, attributes[name][:80])
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"url\(|@import", text)
    policies = [a["content"] for tag, a in parsed.tags if tag == "meta" and "http-equiv" in a]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_pictures_are_whole(commands_folder: Path) -> None:
    sources = [a["src"] for tag, a in Page((commands_folder / "report.html").read_text()).tags if tag == "img"]
    assert len(sources) >= 5
    for source in sources:
        data = base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True)
        assert data.startswith(b"\x89PNG")
        assert data[-8:-4] == b"IEND"


def test_text_is_escaped_wherever_it_may_stand(tmp_path: Path) -> None:
    """A name of a file, a class or an option is no markup, be it a heading, a link, a note, a cell or an alt text."""
    hostile = """<script src="x">'&amp;"""
    png = tmp_path / f"a{hostile.replace('/', '')}.png"
    png.write_bytes(b"\x89PNG")
    blocks = [
        page.table([hostile], [[hostile]], hostile),
        page.note(hostile),
        page.picture(png, hostile),
        page.picture(png, ""),
        page.options({hostile: {hostile: hostile, "list": [hostile]}}),
        page.facts({hostile: hostile}).body,
    ]
    parsed = Page(page.render(hostile, [page.Section(hostile, "".join(blocks))]))
    assert not parsed.open
    assert "script" not in {tag for tag, _ in parsed.tags}
    # <title>, <h1>, the link, the heading, three parts of the table, two notes, four parts of the options, two facts.
    assert [text for text in parsed.text if text.strip() and text != "list"].count(hostile) == 15
    assert [attributes["alt"] for tag, attributes in parsed.tags if tag == "img"] == [hostile, png.stem]


def test_a_heading_is_a_safe_anchor() -> None:
    parsed = Page(page.render("title", [page.Section('a" onclick="x', "")]))
    assert [attributes for tag, attributes in parsed.tags if tag in ("a", "h2")] == [
        {"href": "#a--onclick--x"},
        {"id": "a--onclick--x"},
    ]


def test_table_cells() -> None:
    table = ResultTable.of(
        "title", "first", {"b": "B", "a": "A"}, {"row": {"a": percent(0.5), "b": percent(0.25, 0.1)}}
    )
    assert table == ResultTable("title", ["first", "B", "A"], [["row", "25.0 ± 10.0", "50.0"]])


def test_spread_of_repetitions() -> None:
    assert spread([0.25, 0.75]) == {"mean": 0.5, "std": pytest.approx(0.125**0.5)}
    assert spread([0.25]) == {"mean": 0.25, "std": None}, "one run tells nothing of the deviation"


def test_options_read_as_on_the_command_line() -> None:
    parsed = Page(page.options({"recipe": "demo", "augment": {"scale": (0.4, 4 / 3), "mean": [0.5]}}))
    assert parsed.text == ["augment", "scale", "0.4 1.33333", "mean", "0.5"]


def open_in_chromium(page_file: Path, folder: Path) -> tuple[list[str], list[str]]:
    """Console messages of a page, and the addresses that the page itself (not the browser) asked the network for."""
    log = folder / "net.json"
    quiet = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
    quiet += ["--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND"]  # the browser's own calls go nowhere
    where = [f"--user--data={folder / 'profile'}", f"--log-net-log={log}", f"--screenshot={folder / 'page.png'}"]
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", *quiet, *where]
    run = subprocess.run([*command, page_file.as_uri()], capture_output=True, text=True, timeout=600)
    assert (folder / "page.png").exists(), run.stderr
    requests = [event["params"] for event in json.loads(log.read_text())["events"] if "params" in event]
    asked = [one["url"] for one in requests if one.get("initiator", "not an origin") != "not an origin"]
    return [line for line in run.stderr.splitlines() if ":CONSOLE" in line], asked


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="opens the page in Chromium, which is not installed")


@needs_chromium
def test_browser_sees_no_console_message_and_no_request(commands_folder: Path, tmp_path: Path) -> None:
    assert open_in_chromium(commands_folder / "report.html", tmp_path) == ([], [])


@needs_chromium
def test_browser_would_see_them(tmp_path: Path) -> None:
    file = tmp_path / "bad.html"
    file.write_text('<link rel="icon" href="data:,"><img src="http://127.0.0.1:9/x.png"><script>nonsense()</script>')
    console, asked = open_in_chromium(file, tmp_path)
    assert len(console) == 1
    assert "nonsense is not defined" in console[0]
    assert asked == ["http://127.0.0.1:9/x.png"]
