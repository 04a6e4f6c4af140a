"""`igd bench decode --at-once`: what it says of people who ask at once, on a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from factories import make_catalogue, tiny_checkpoint

from igd_core.bench import at_once
from igd_core.bench.datasets import BenchData
from igd_core.bench.decode import DecodeSettings
from igd_core.cli.main import main
from igd_core.ids import ItemIndex

if TYPE_CHECKING:
    from igd_core.catalogue.tokenization import TitleTokenizer

HISTORIES = 12


def made_up(name: str, *, histories: int, video_games: Path) -> BenchData:
    del video_games
    drawn = tuple((ItemIndex(number), ItemIndex(number + 7)) for number in range(histories))
    return BenchData(name=name, catalogue=make_catalogue(60), histories=drawn)


@pytest.mark.parametrize("kind", ["llama-fp32", "llama-fp32-own", "llama-fp32-pooled"])
def test_shares_add_up_and_people_share_passes_where_the_forward_lets_them(
    tokenizer: TitleTokenizer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(at_once, "load_dataset", made_up)
    checkpoint = tiny_checkpoint(kind, tokenizer)
    settings = DecodeSettings(video_games=Path(), histories=HISTORIES, beams=3)
    alone, together = (
        at_once.AtOnceResult(**found)  # type: ignore[arg-type]
        for found in at_once.bench_at_once(checkpoint, ["films"], settings, [1, 4])
    )
    assert (alone.at_once, together.at_once) == (1, 4)
    for found in (alone, together):
        assert (found.dataset, found.histories) == ("films", HISTORIES)
        assert found.queue_share + found.model_share + found.search_share == pytest.approx(1, abs=0.002)
        assert found.p50_s <= found.p95_s
        assert (found.forward, found.why_forward) == ("transformers" if kind == "llama-fp32" else "own", "")
        assert found.passes * found.people_a_pass == pytest.approx(
            found.passes if found is alone else alone.passes, rel=0.1
        )
        assert (0 < found.filled_up < 1) == kind.endswith("pooled")
    assert alone.people_a_pass == 1
    assert (together.people_a_pass > 1) == (kind != "llama-fp32")
    assert together.queue_share > 0


def test_vllm_is_measured_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "decode", "--engine", "vllm", "--at-once", "2"]) == 2
    assert capsys.readouterr().err == "igd: at_once: measures the embedded engine; igd bench vllm has --concurrency\n"
    assert main(["bench", "decode", "--at-once", "2,none"]) == 2
    assert capsys.readouterr().err == "igd: at_once: 'none' is not a whole number in 1..2147483647\n"
