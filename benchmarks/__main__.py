"""`python -m benchmarks` lists the questions."""

from __future__ import annotations

import ast
from pathlib import Path

TOOLS = ("asking", "cli", "engine", "forecast", "methods", "report", "sweep", "timing", "trial")


def questions() -> dict[str, str]:
    """{name: the sentence that its file opens with}, read without importing anything."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    named = [f for f in files if not f.stem.startswith("_") and f.stem not in TOOLS]
    return {f.stem: str(ast.get_docstring(ast.parse(f.read_text()))).splitlines()[0] for f in named}


if __name__ == "__main__":
    for name, sentence in questions().items():
        print(f"python -m benchmarks.{name:12s} {sentence}")
