"""The doctor names versions and paths, and its self-test finds a fault."""

from __future__ import annotations

import pytest
import torch

from rodin_kernels import doctor


def test_the_report_says_what_runs_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main() == 0
    text = capsys.readouterr().out
    assert torch.__version__ in text and "all is well" in text
    for operator in doctor.OPERATORS:
        assert f"{operator} on cpu, backend torch" in text
    assert all(path.reason for path in doctor.paths())


def test_the_self_test_finds_a_fault(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = doctor.checks

    def wrong() -> list[tuple[str, doctor.Call, doctor.Call, list[torch.Tensor]]]:
        name, call, reference, inputs = right()[0]
        return [(name, lambda *own, **options: call(*own, **options) * 1.001, reference, inputs)]

    monkeypatch.setattr(doctor, "checks", wrong)
    assert doctor.main() == 1
    assert "AssertionError" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_install() -> None:
    assert any("GPU" in line for line in doctor.advice())
    assert all(path.backend == "torch" for path in doctor.paths())
