"""The READMEs' measured tables are what the records give, and say how they were measured."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from benchmarks import readme
from benchmarks.measured_tables import Excerpt, Ratio, StaleTable, Table
from benchmarks.readme import ROOT, TABLES
from benchmarks.readme_tables import DEVICE
from benchmarks.record import Record

TEXTS = {path: (ROOT / path).read_text() for path in readme.READMES}


@pytest.fixture
def copied(tmp_path):
    """The READMEs and the records that they show."""
    shutil.copytree(ROOT / readme.RESULTS, tmp_path / readme.RESULTS)
    for path in readme.READMES:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    return tmp_path


def test_no_table_is_stale():
    assert readme.main(["--check"]) == 0, "run python benchmarks/readme.py"


def test_every_table_is_shown_and_numbers_stand_in_no_other():
    shown = {name for text in TEXTS.values() for name in re.findall(r"measured: (.+?) -->", text)}
    assert shown == set(TABLES)
    outside = re.sub(
        r"<!-- measured: (.+?) -->.*?<!-- end of \1 -->", "", TEXTS[readme.READMES[0]], flags=re.S
    )
    tables = [line for line in outside.splitlines() if line.startswith("|")]
    assert not [line for line in tables if re.search(r"\| \**\d", line)]


def test_an_edited_number_is_found_and_put_right(copied, capsys):
    assert readme.main(["--check"], copied) == 0
    path = copied / "README.md"
    number = re.search(r"\| \*\*[\d.]+\*\* \|", path.read_text())[0]
    path.write_text(path.read_text().replace(number, "| **987** |", 1))
    assert readme.main(["--check"], copied) == 1
    assert "stale: README.md;" in capsys.readouterr().out
    assert "**987**" in path.read_text()
    assert readme.main([], copied) == 0
    assert path.read_text() == TEXTS[readme.READMES[0]]


def test_a_new_record_makes_both_readmes_stale(copied):
    path = copied / readme.RESULTS / f"{DEVICE}-accelerate.json"
    record = json.loads(path.read_text())
    rows = record["entries"]["accelerate zuko D=784 batch 64"]["rows"]
    rows["zuko before"]["ratio_to"]["ours"] = {"median": 123.4, "spread": 9.3}
    path.write_text(json.dumps(record))
    assert readme.main(["--check"], copied) == 1
    assert readme.main([], copied) == 0
    for name in readme.READMES:
        assert "| **123** ± 9 |" in (copied / name).read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda root: (root / readme.RESULTS / "amd-epyc.json").unlink(),
            "there is no benchmarks",
        ),
        (lambda root: rename_entry(root), "elementwise: no 'affine_coupling tabular exp forward'"),
        (lambda root: edit(root, "measured: energies", "measured: energy"), "no table is called"),
        (lambda root: edit(root, "<!-- end of energies -->", ""), "needs one"),
    ],
)
def test_what_cannot_be_written_is_named(copied, change, words, capsys):
    change(copied)
    before = (copied / "README.md").read_text()
    assert readme.main([], copied) == 2
    assert words in capsys.readouterr().err
    assert (copied / "README.md").read_text() == before


def rename_entry(root):
    path = root / readme.RESULTS / "amd-epyc.json"
    path.write_text(path.read_text().replace("affine_coupling tabular exp forward", "gone"))


def edit(root, old, new):
    path = root / "README.md"
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize("name", TABLES)
def test_the_command_of_a_table_writes_its_record(name):
    """The record's name and entries are those of the words after --filter."""
    table = TABLES[name]
    assert table.record in readme.generated(name, ROOT, readme.READMES[0])
    assert table.command in readme.generated(name, ROOT, readme.READMES[0])
    if isinstance(table, Excerpt):
        text = (ROOT / readme.RESULTS / f"{table.record}.md").read_text()
        assert f"Written by `{table.command}`" in text
        return
    words = shlex.split(table.command)
    word = words[words.index("--filter") + 1] if "--filter" in words else ""
    record = json.loads((ROOT / readme.RESULTS / f"{table.record}.json").read_text())
    assert all(word in entry for entry in record["entries"])
    about = json.loads((ROOT / readme.RESULTS / f"{table.record}.json").read_text())["about"]
    written, _ = Record(about).paths(ROOT / readme.RESULTS, word)
    assert written.stem == table.record


def test_numbers_are_rounded_once():
    def text(median, width=0.0, **options):
        ratios = {"ours": {"ratio_to": {"copy": {"median": median, "spread": width}}}}
        return Ratio("e", **options).text({"entries": {"e": {"rows": ratios}}})

    assert [text(v) for v in (0.5649, 0.996, 1.25001, 9.94, 9.96, 1394.75)] == [
        "0.56",
        "1.0",
        "1.3",
        "9.9",
        "10",
        "1395",
    ]
    assert text(1394.75, 480.2, bold=True, spread=True) == "**1395** ± 480"
    assert text(7.31, 0.149, spread=True) == "7.3 ± 0.15"
    with pytest.raises(StaleTable, match="no 'pass'"):
        text(1.0, to="pass")
    assert all(isinstance(table, Table | Excerpt) for table in TABLES.values())


def test_the_command():
    done = subprocess.run(
        [sys.executable, "benchmarks/readme.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
