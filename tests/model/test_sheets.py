"""Contact sheets put every picture where it belongs, keep words short, and carry the mark."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from rodin_model.provenance import Mark
from rodin_model.sheets import save_sheet, sheet

COLORS = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]


def flat(color: tuple[float, float, float], size: int = 10) -> torch.Tensor:
    """A picture of one colour."""
    return torch.tensor(color).expand(size, size, 3)


def centre(page: Image.Image, column: int, row: int, cell: int, height: int) -> tuple[int, ...]:
    """The pixel in the middle of a cell."""
    return page.getpixel((6 + column * (cell + 6) + cell // 2, 6 + row * height + cell // 2))


def test_pictures_stand_in_reading_order() -> None:
    page = sheet([flat(c) for c in COLORS], 2, cell=40)
    assert page.size == (2 * 46 + 6, 2 * 46 + 6)
    assert centre(page, 0, 0, 40, 46) == (255, 0, 0)
    assert centre(page, 1, 0, 40, 46) == (0, 255, 0)
    assert centre(page, 0, 1, 40, 46) == (0, 0, 255)
    assert centre(page, 1, 1, 40, 46) == (246, 246, 246)


def test_labels_stay_under_their_picture() -> None:
    words = "an elderly woman with a very long description that cannot possibly fit " * 4
    plain = sheet([flat(COLORS[0])] * 2, 2, ["", ""], cell=80)
    labelled = sheet([flat(COLORS[0])] * 2, 2, [words, ""], cell=80)
    assert labelled.size == plain.size
    assert labelled.tobytes() != plain.tobytes()
    # the second column's label is empty: nothing may have been written there
    right = (6 + 86, 0, *plain.size)
    assert labelled.crop(right).tobytes() == plain.crop(right).tobytes()


@pytest.mark.parametrize(("count", "columns", "labels"), [(0, 1, None), (1, 0, None), (2, 2, ["one"])])
def test_what_makes_no_sheet_is_refused(count: int, columns: int, labels: list[str] | None) -> None:
    with pytest.raises(ValueError, match="a sheet needs"):
        sheet([flat(COLORS[0])] * count, columns, labels)


def test_saved_sheets_carry_the_mark(tmp_path: Path) -> None:
    save_sheet(tmp_path / "sheet.png", sheet([flat(COLORS[0])], 1, ["red"], title="one"), Mark("tiny"))
    data = (tmp_path / "sheet.png").read_bytes()
    assert b"trainedAlgorithmicMedia" in data
    assert [p.name for p in tmp_path.iterdir()] == ["sheet.png"]
