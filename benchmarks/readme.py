"""Writes the measured tables of the READMEs from benchmarks/results: `python benchmarks/readme.py`.

A table stands between `<!-- measured: NAME -->` and `<!-- end of NAME -->`. Which record, entry and
row each of its numbers is, readme_tables.py says; the line below a table says where and how it was
measured. `--check` writes nothing and exits 1 where a table is not what the records give.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from benchmarks.measured_tables import RESULTS, StaleTable  # noqa: E402
from benchmarks.readme_tables import TABLES  # noqa: E402

READMES = (Path("README.md"), Path("deepgen_ext/compat/README.md"))


def generated(name: str, root: Path, readme: Path) -> str:
    """What stands between the markers."""
    table = TABLES[name]
    up = "../" * (len(readme.parts) - 1)
    try:
        lines = [list(table.head), ["---"] * len(table.head), *table.cells(root)]
        caption = table.caption(root, f"{up}{RESULTS}")
    except StaleTable as error:
        raise StaleTable(f"{name}: {error}") from None
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"\n{text}\n\n{caption}\n"


def rewritten(text: str, root: Path, readme: Path) -> str:
    """The text with each of its tables as the records give it."""
    names = re.findall(r"<!-- measured: (.+?) -->", text)
    for name in names:
        if name not in TABLES:
            raise StaleTable(
                f"{readme}: no table is called {name!r}; there are: {', '.join(TABLES)}"
            )
        begin, end = f"<!-- measured: {name} -->\n", f"<!-- end of {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise StaleTable(f"{readme}: {name!r} needs one {begin.strip()} and one {end}")
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = before + begin + generated(name, root, readme) + "\n" + end + after
    return text


def main(given: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where one is stale")
    options = parser.parse_args(given)
    stale = []
    for readme in READMES:
        text = (root / readme).read_text()
        try:
            new = rewritten(text, root, readme)
        except StaleTable as error:
            print(error, file=sys.stderr)
            return 2
        if new == text:
            continue
        stale.append(readme)
        if not options.check:
            (root / readme).write_text(new)
            print(f"wrote {readme}")
    if options.check and stale:
        print(f"stale: {', '.join(map(str, stale))}; run python benchmarks/readme.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
