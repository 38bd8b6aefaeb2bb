"""Print the README's set-up commands, one per line: what its ```bash blocks hold, in order."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def commands(readme: str) -> list[str]:
    """The commands of a README: every line of every block fenced as bash."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", readme, flags=re.MULTILINE | re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


if __name__ == "__main__":
    sys.stdout.write("".join(f"{line}\n" for line in commands(Path("README.md").read_text(encoding="utf-8"))))
