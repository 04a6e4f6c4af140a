"""Attributes from a shop's csv file to filters: `data prepare`, `build`, `recommend` and HTTP agree on types."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import film_apps
import pytest
from factories import EOS

from igd_core.artifact import load_artifact
from igd_core.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from igd_core.artifact import Artifact
    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.engines.embedded.checkpoint import Checkpoint

ITEMS = """\
item_id,title,discs,live,price,year,genres,code,flag01,released,seen_at
1,The Amber Road,1,true,1.0,2001,folk|pop,007,0,2001-05-17,2001-05-17T22:00:00Z
2,Blue Harbour,2,false,2.5,2002,pop,008,1,2002-01-01,2002-01-01T00:30:00+02:00
3,Cold Letters,1,true,0,2003,,009,1,,
4,Dust and Honey,0,false,1,2004,swing,010,0,1998-12-31,2004-02-29T12:00:00Z
5,Early Trains,3,true,1e2,2005,folk,011,1,2005-07-01,2005-07-01T00:00:00Z
"""
EVENTS = "user_id,item_id,timestamp\n" + "".join(
    f"u{user},{item},{1_700_000_000 + 100 * user + item}\n" for user in range(8) for item in range(1, 6)
)
TYPES = {
    "discs": "integer",
    "live": "boolean",
    "price": "number",
    "year": "integer",
    "genres": "list-of-text",
    "code": "text",
    "flag01": "integer",
    "released": "date",
    "seen_at": "datetime",
}


@pytest.fixture(scope="module")
def model_dir(
    checkpoint_of: Callable[[str], Checkpoint], definition: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    directory: Path = tmp_path_factory.mktemp("model")
    checkpoint_of("llama-float32").model.save_pretrained(directory)
    (directory / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": EOS}), encoding="utf-8")
    return directory


def written(folder: Path, items: str = ITEMS) -> list[str]:
    (folder / "items.csv").write_text(items, "utf-8")
    (folder / "events.csv").write_text(EVENTS, "utf-8")
    return ["--items", str(folder / "items.csv"), "--interactions", str(folder / "events.csv")]


@pytest.fixture(scope="module")
def built(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared with ``--multi``, built without: the schema beside the prepared items says what is a list."""
    folder = tmp_path_factory.mktemp("typed")
    out, artifact = folder / "prepared", folder / "artifact"
    assert main(["data", "prepare", "csv", *written(folder), "--multi", "genres=|", "--out", str(out)]) == 0
    schema = json.loads((out / "items.schema.json").read_text("utf-8"))
    assert {name: entry["type"] for name, entry in schema["attributes"].items()} == TYPES
    files = ["--items", str(out / "items.csv"), "--interactions", str(out / "train_interactions.csv")]
    assert main(["build", *files, "--smoothing", "1", "--tokenizer", str(model_dir), "--out", str(artifact)]) == 0
    return artifact


@pytest.fixture(scope="module")
def artifact(built: Path) -> Artifact:
    return load_artifact(built)


def test_types_travel_from_the_file_to_the_artifact(artifact: Artifact) -> None:
    assert {name: kind.name for name, kind in artifact.catalogue.types.items()} == TYPES
    values = {name: list(column) for name, column in artifact.catalogue.metadata.items()}
    assert values["price"] == [1.0, 2.5, 0.0, 1.0, 100.0]
    assert values["genres"] == [("folk", "pop"), ("pop",), (), ("swing",), ("folk",)]
    assert values["code"] == ["007", "008", "009", "010", "011"]
    assert values["seen_at"][1] == "2001-12-31T22:30:00Z"


async def answer(artifact: Artifact, tokenizer: TitleTokenizer, tmp_path: Path, **asked: Any) -> dict[str, Any]:
    async with film_apps.running(artifact, tokenizer, tmp_path) as apps:
        response = await film_apps.ask(apps, "/v1/recommendations", {"history": [], "k": 5, **asked})
    body: dict[str, Any] = response.json()
    assert response.status_code == body.get("status", 200)
    return body


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"live": True}, "135"),
        ({"discs": 1}, "13"),
        ({"discs": 1.0}, "13"),
        ({"year": [2001, 2004]}, "14"),
        ({"price": 1}, "14"),
        ({"price": {"gt": 0, "lte": 2.5}}, "124"),
        ({"price": {"gte": 100}}, "5"),
        ({"year": {"gte": 2002, "lt": 2005}, "live": False}, "24"),
        ({"genres": "folk"}, "15"),
        ({"genres": {"none_of": ["folk"]}}, "234"),
        ({"genres": {"none_of": ["folk"], "exists": True}}, "24"),
        ({"genres": {"exists": False}}, "3"),
        ({"genres": {"gte": "pop"}}, "124"),
        ({"code": "007"}, "1"),
        ({"code": {"gt": "009"}}, "45"),
        ({"flag01": 0}, "14"),
        ({"released": {"gte": "2001-05-17", "lt": "2005-07-01"}}, "12"),
        ({"released": {"lt": "1999-01-01"}}, "4"),
        ({"seen_at": "2001-12-31T22:30:00Z"}, "2"),
        ({"seen_at": {"gt": "2004-02-29T13:00:00+01:00"}}, "5"),
        ({"discs": {"gte": 2**63}}, ""),
        ({"discs": {"lte": 2**63, "gte": -(2**70)}}, "12345"),
    ],
)
async def test_conditions_are_compared_by_type_and_all_must_hold(
    artifact: Artifact, tokenizer: TitleTokenizer, tmp_path: Path, wanted: dict[str, Any], found: str
) -> None:
    body = await answer(artifact, tokenizer, tmp_path, filter=wanted)
    assert sorted(item["item_id"] for item in body["items"]) == list(found)
    assert "warnings" not in body


@pytest.mark.parametrize(
    ("wanted", "field", "detail"),
    [
        ({"discs": True}, "filter.discs", "true is no integer, such as 7; the attribute is integer"),
        ({"flag01": False}, "filter.flag01", "false is no integer"),
        ({"live": 1}, "filter.live", "1 is no boolean"),
        ({"live": "true"}, "filter.live", "'true' is no boolean"),
        ({"year": "2001"}, "filter.year", "'2001' is no integer"),
        ({"year": {"gte": "2001"}}, "filter.year.gte", "'2001' is no number, such as 9.5; the attribute is integer"),
        ({"code": 7}, "filter.code", '7 is no text, such as "abc"; the attribute is text'),
        ({"genres": [1]}, "filter.genres", '1 is no text, such as "abc"; the attribute is list-of-text'),
        ({"released": "17.05.2001"}, "filter.released", "'17.05.2001' is no date"),
        ({"seen_at": {"lt": "2001-05-17T10:00:00"}}, "filter.seen_at.lt", "is no date and time with a zone"),
        ({"price": {"between": [1, 2]}}, "filter.price", "no operator 'between'; there are any_of, none_of"),
        ({"price": None}, "filter.price", "got null"),
        ({"genre": "pop"}, "filter", "no attribute 'genre' (did you mean 'genres'?)"),
    ],
)
async def test_another_type_is_refused_by_field_value_and_type(
    artifact: Artifact, tokenizer: TitleTokenizer, tmp_path: Path, wanted: dict[str, Any], field: str, detail: str
) -> None:
    body = await answer(artifact, tokenizer, tmp_path, filter=wanted)
    assert (body["status"], body["type"], body["field"]) == (422, "urn:igd:problem:invalid-field", field)
    assert detail in body["detail"]


async def test_a_value_that_no_item_has_is_answered_with_a_warning_and_refused_when_strict(
    artifact: Artifact, tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    asked = {"filter": {"genres": ["popp", "swing"], "year": {"none_of": [1901]}}, "history": ["5"]}
    body = await answer(artifact, tokenizer, tmp_path, **asked)
    assert [item["item_id"] for item in body["items"]] == ["4"]
    assert body["warnings"] == [
        {
            "code": "unknown-values",
            "detail": 'filter.genres: no item has "popp"; the nearest that items have: "pop"',
            "field": "filter.genres",
            "count": 1,
            "sample": ["popp"],
        },
        {
            "code": "unknown-values",
            "detail": "filter.year: no item has 1901; the nearest that items have: 2001",
            "field": "filter.year",
            "count": 1,
            "sample": ["1901"],
        },
    ]
    refused = await answer(artifact, tokenizer, tmp_path, strict=True, **asked)
    assert (refused["status"], refused["field"]) == (422, "filter.genres")
    assert 'no item has "popp"' in refused["detail"]


async def test_a_kept_answer_is_found_by_what_a_filter_means_and_still_warns(
    artifact: Artifact, tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    same = [
        {"discs": [1, 2], "genres": ["pop", "zzz"]},
        {"genres": {"any_of": ["zzz", "pop", "pop"]}, "discs": {"any_of": [2.0, 1]}},
    ]
    other = {"discs": {"gte": 1, "lte": 2}, "genres": ["pop"]}
    async with film_apps.running(artifact, tokenizer, tmp_path) as apps:
        bodies = [
            (await film_apps.ask(apps, "/v1/recommendations", {"history": ["5"], "k": 2, "filter": wanted})).json()
            for wanted in (*same, other)
        ]
    assert [body["cached"] for body in bodies] == [False, True, False]
    assert [len(body.get("warnings", [])) for body in bodies] == [1, 1, 0]


async def test_catalogues_and_items_show_types_and_values(
    artifact: Artifact, tokenizer: TitleTokenizer, tmp_path: Path
) -> None:
    async with film_apps.running(artifact, tokenizer, tmp_path) as apps:
        catalogues = (await film_apps.ask(apps, "/v1/catalogues")).json()["catalogues"]
        item = (await film_apps.ask(apps, "/v1/items/1")).json()
        openapi = (await film_apps.ask(apps, "/openapi.json")).json()
    kinds = {one["name"]: (one["kind"], one["type"]) for one in catalogues[0]["attributes"]}
    assert kinds["released"] == ("text", "date")
    assert kinds["price"] == ("number", "number")
    assert kinds["genres"] == ("list", "list-of-text")
    assert item["attributes"] == {
        "discs": 1, "live": True, "price": 1.0, "year": 2001, "genres": ["folk", "pop"], "code": "007", "flag01": 0,
        "released": "2001-05-17", "seen_at": "2001-05-17T22:00:00Z",
    }  # fmt: skip
    operators = openapi["components"]["schemas"]["FilterOperators"]
    assert set(operators["properties"]) == {"any_of", "none_of", "gte", "gt", "lte", "lt", "exists"}
    assert operators["additionalProperties"] is False


@pytest.mark.parametrize("command", ["prepare", "build"])
def test_one_price_that_is_none_is_refused_by_row_until_a_flag_or_the_schema_decides(
    command: str, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = written(tmp_path, ITEMS.replace("1e2", "n/a"))
    more = ["--tokenizer", str(model_dir)] if command == "build" else []
    arguments = [*(["build"] if command == "build" else ["data", "prepare", "csv"]), *files, *more]
    assert main([*arguments, "--out", str(tmp_path / "no")]) == 2
    told = capsys.readouterr().err
    assert "items.csv: row 6: price 'n/a' is no number, as 4 values are (--missing price=n/a takes such cells" in told
    assert "--type price=text" in told
    assert told.count("\n") == 1
    assert not (tmp_path / "no").exists()
    assert main([*arguments, "--out", str(tmp_path / "flag"), "--missing", "price=n/a"]) == 0
    assert "price number" in capsys.readouterr().out
    assert main([*arguments, "--out", str(tmp_path / "text"), "--type", "price=text"]) == 0
    assert "price text" in capsys.readouterr().out
    (tmp_path / "items.schema.json").write_text(
        '{"format": "igd-attributes", "format_version": 1, '
        '"attributes": {"price": {"type": "number", "missing": ["n/a"]}, "flag01": {"type": "boolean"}}}'
    )
    assert main([*arguments, "--out", str(tmp_path / "schema")]) == 0
    told = capsys.readouterr().out
    assert "price number" in told
    assert "flag01 boolean" in told
    (tmp_path / "items.schema.json").rename(tmp_path / "types.json")
    schema = ["--schema", str(tmp_path / "types.json"), "--json"]
    assert main([*arguments, "--out", str(tmp_path / "named"), *schema]) == 0
    assert json.loads(capsys.readouterr().out)["attributes"]["flag01"] == "boolean"


def test_igd_recommend_takes_the_same_filters(built: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def recommend(wanted: str) -> int:
        model = ["--model", str(model_dir), "--device", "cpu", "--json"]
        return main(["recommend", "--artifact", str(built), *model, "--history", "3", "--k", "5", "--filter", wanted])

    assert recommend('{"price": {"gte": 1, "lt": 3}, "genres": ["pop", "Swing", "swing"]}') == 0
    printed = capsys.readouterr()
    assert sorted(item["item_id"] for item in json.loads(printed.out)["items"]) == ["1", "2", "4"]
    assert 'warning: filter.genres: no item has "Swing"; the nearest that items have: "swing"' in printed.err
    assert recommend('{"year": "2001"}') == 2
    assert "igd: filter.year: '2001' is no integer" in capsys.readouterr().err
    assert recommend("{year: 2001}") == 2
    assert "is not JSON" in capsys.readouterr().err
