"""Draw the pictures of the README again, from one run: docs/pictures/draw.py [RUN_FOLDER].

Trains recipes/quickstart.yaml on one thread, four minutes, and draws what it printed; Chromium
shows the first screen of the report's page.
"""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from PIL import Image
from rich.console import Console
from rich.text import Text

from trainer.evaluation.report import print_report

WIDTH = 126  # the table of the report on one line


def printed_by(run: Path) -> list[str]:
    """The lines that a training of the quickstart prints, but for its steps and its report."""
    command = [sys.executable, "launcher/train.py", "recipes/quickstart.yaml"]
    done = subprocess.run(
        [*command, f"run.output_dir={run}"], cwd=ROOT, check=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "1000"},
    )  # fmt: skip
    lines = done.stdout.replace(str(run), "~/focaltune/runs/quickstart").splitlines()
    return [line for line in lines if re.match(r"focaltune:|  [a-z]|validation", line)]


def screen_of(page: Path, picture: Path) -> None:
    """The first screen of a page; 128 colours are all it needs."""
    options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1000,1440"]
    options += ["--run-all-compositor-stages-before-draw", "--virtual-time-budget=5000"]
    command = ["chromium", *options, f"--screenshot={picture}", page.as_uri()]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    with Image.open(picture) as image:
        few = image.convert("RGB").quantize(128)
    few.save(picture, optimize=True)


def main(run: Path) -> None:
    """Train, then draw the terminal and the page."""
    console = Console(
        record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    lines = printed_by(run)
    console.print(Text("$ make quickstart", "bold"))
    for line in lines:
        console.print(line, highlight=False, markup=False)
    print_report(json.loads((run / "report" / "test.json").read_text()), console)
    drawn = console.export_svg(title="focaltune")
    drawn = re.sub(r"\s*@font-face \{.*?\}", "", drawn, flags=re.DOTALL)  # fonts of a foreign host
    folder = Path(__file__).parent
    (folder / "quickstart.svg").write_text(drawn.replace("Fira Code, monospace", "monospace"))
    screen_of(run / "report" / "index.html", folder / "page.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/pictures").resolve())
