"""The quick benchmark runs and reports every figure. At its small sizes the ratios mean nothing."""

import pytest

from tests.benchmarks.__main__ import main


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_quick_run_reports_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    parts = ("engine", "labels", "training", "memory")  # tests/device runs the rest
    assert main(["--quick", "--device", "cpu", "--only", *parts]) in (0, 1)
    lines = [line for line in capsys.readouterr().out.splitlines()[1:] if " target " in line]
    assert [line.split(":")[0] for line in lines[:-1]] == [
        *["engine"] * 8,
        *["exact"] * 5,
        "second-order",
        "exact",
        *["causal"] * 5,
        *["training"] * 3,
    ]
    assert "peak memory" in lines[-1]
    assert all(line.endswith(("met", "MISSED")) for line in lines)
    assert lines[11].endswith("met"), "the published procedure gives other labels"
