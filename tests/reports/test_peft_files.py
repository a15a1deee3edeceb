"""Tests stored trials as files of peft's comparison and back, and peft's own files as results."""

from __future__ import annotations

from pathlib import Path

import pytest

from tensorbench import Selection, load_results
from tensorbench.methods import UserError
from tensorbench.reports.peft_files import UNTUNED

from .test_peft_comparison import content, write


def test_a_folder_of_peft_s_files_is_results(tmp_path: Path) -> None:
    folder = tmp_path / "snapshot"
    write(folder, "lora--rank32", content(0.5))
    write(folder, "ia3--default", content(0.4))
    write(folder, "vera--default", content(0.4, status="failed"))
    results = load_results(folder)
    assert results.cells["method"].tolist() == ["ia3--default", "lora--rank32"]
    assert results.cells["mean"].tolist() == [0.4, 0.5]
    assert {cell.budget for cell in results.all_cells} == {UNTUNED}
    assert any(UNTUNED in note for note in results.notes)
    assert any("vera--default" in note for note in results.notes)
    assert [seed["forgetting"] for seed in results.all_seeds] == [0.1, 0.1]
    assert results.trials.empty
    assert results.curves.empty
    assert results.predictions.empty
    assert [line["score"] for line in results.overview().lines] == ["0.4000", "0.5000"]
    with pytest.raises(UserError, match="peft"):
        results.plot()
    with pytest.raises(UserError, match="selection"):
        load_results(folder, selection=Selection(methods=["lora--rank32"]))
    with pytest.raises(UserError, match="snapshot"):
        load_results(folder, "another")
