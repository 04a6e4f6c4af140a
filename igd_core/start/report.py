"""The report of a start: one HTML file with its pictures in it, which opens without a network."""

from __future__ import annotations

import base64
import html
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igd_core.start.pictures import accuracy_picture, slices_picture
from igd_core.start.verdict import RULE, shown_name
from igd_core.start.words import shown_fact
from igd_core.whole_files import replaced_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from igd_core.evaluation.bootstrap import Interval
    from igd_core.start.folder import StartFolder
    from igd_core.start.run import Outcome
    from igd_core.start.verdict import Judged, Verdict

_STYLE = Path(__file__).with_name("report.css")
_METRICS = (
    "HR@10: the share of rows whose item is among the first ten. NDCG@10: the same, where a later rank counts for less."
)
_TITLES = (
    ("items", "items"),
    ("distinct_paths", "distinct titles"),
    ("truncated_titles", "titles cut at the longest path"),
    ("cold_items", "items never chosen in training"),
    ("tokens_per_path", "tokens a title"),
    ("zero_share_catalogue", "share of tokens that decide nothing"),
    ("decisions_per_path", "decisions a title"),
    ("first_tokens", "distinct first tokens"),
)


def write_report(path: Path, folder: StartFolder, outcome: Outcome, told: Sequence[str]) -> None:
    """Write the report of a finished start.

    Args:
        path: of the HTML file.
        folder: with all stages done.
        outcome: the verdict, and how to serve.
        told: what the exports were taken for, a line each.
    """
    done = {name: stage["result"] for name, stage in folder.done.items()}
    verdict, judged = outcome.verdict, folder.path / "judged"
    parts = [
        _headline(verdict.told()),
        _methods(verdict),
        f'<p class="soft">{_text(RULE)}</p>',
        _picture(accuracy_picture(judged, verdict), f"All methods on the test rows, 95 % intervals. {_METRICS}"),
        _picture(
            slices_picture(judged, verdict),
            "The served lists and the best others by length of the history, by how often the item that was chosen was "
            "chosen in training (head: most often; cold: never), and by decisions in its title, 95 % intervals",
        ),
        f"<h2>Serve it</h2><pre>{_text(shlex.join(['igd', 'serve', *outcome.serve]))}</pre>",
        _served(done["serve"]),
        f"<h2>The exports</h2><pre>{_text(chr(10).join(told))}</pre>",
        _facts(
            (name.replace("_", " "), value)
            for name, value in done["data"].items()
            if name not in {"out", "multi", "notes"}
        ),
        _notes(done["data"].get("notes", ())),
        "<h2>The titles</h2>",
        _facts((words, done["titles"][name]) for name, words in _TITLES),
        _picture(_bytes(folder.path / "gain.png"), "Information gain of the titles' tokens, by position"),
        f"<h2>What was chosen</h2>{_chosen(done)}",
        f"<h2>Time by stage</h2>{_stages(folder)}",
    ]
    with replaced_file(path) as file:
        file.write(
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>igd start: {_text(verdict.says)}</title><style>{_STYLE.read_text('utf-8')}</style></head><body>"
            + "\n".join(parts)
            + "</body></html>\n"
        )


def _notes(notes: Sequence[str]) -> str:
    """What the data stage noted of the exports' rows, a paragraph each."""
    return "".join(f'<p class="soft">{_text(note)}</p>' for note in notes)


def _headline(told: str) -> str:
    """The verdict, its word large and its figures less so."""
    word, colon, figures = told.partition(": ")
    return f"<h1>{_text(word[0].upper() + word[1:])}<span>{_text(colon + figures)}</span></h1>"


def _methods(verdict: Verdict) -> str:
    rows = [_method("the served lists", verdict.ours)]
    if verdict.alone is not None:
        rows.append(_method("the model alone", verdict.alone))
    rows += [_method(shown_name(other.name), other) for other in verdict.others]
    head = [verdict.metric, "95 % interval", "served less this", "95 % interval"]
    return _table(["", *head], rows) + (
        f'<p class="soft">{verdict.rows:,} test rows that ask for {verdict.titles:,} titles; items of the history left '
        "out of all lists, as a server does.</p>"
    )


def _method(name: str, judged: Judged) -> list[str]:
    less = judged.less
    value = judged.value
    return [
        name,
        f"{value.value:.4f}",
        _range(value),
        *(["", ""] if less is None else [f"{less.value:+.4f}", _range(less)]),
    ]


def _range(interval: Interval) -> str:
    return f"{interval.low:.4f} to {interval.high:.4f}"


def _served(answer: Mapping[str, Any]) -> str:
    after, comes = "; ".join(answer["history"]), "; ".join(answer["titles"])
    return (
        f"<p>It was started and asked once: after <em>{_text(after)}</em> comes <em>{_text(comes)}</em> "
        f"({answer['milliseconds']:.0f} ms).</p>"
    )


def _chosen(done: Mapping[str, Any]) -> str:
    gamma, record = done["choose"]["gamma"], done["tune"]
    scorers = [name.removeprefix("scorer ") for name in done if name.startswith("scorer ")]
    losses = [entry["eval_loss"] for entry in record["history"] if "eval_loss" in entry]
    by_gamma = ", ".join(f"{of:g}: {ndcg:.4f}" for of, ndcg in zip(gamma["gammas"], gamma["ndcg"], strict=True))
    return _facts(
        [
            ("item scorer", f"{done['shop']['scorer']}, of {', '.join(scorers)}"),
            ("gamma", gamma["served"]),
            ("setting of the search", gamma["setting"]),
            (f"NDCG@{gamma['k']} on validation rows, by gamma", by_gamma),
            ("weights tuned", record["trained_parameters"]),
            ("rows tuned on", record["rows"]["train"]["rows"]),
            ("validation loss by epoch", ", ".join(f"{loss:.3f}" for loss in losses)),
        ]
    )


def _stages(folder: StartFolder) -> str:
    rows = [[name, f"{stage['seconds']:,.1f}"] for name, stage in folder.done.items()]
    total = sum(stage["seconds"] for stage in folder.done.values())
    return _table(["stage", "seconds"], [*rows, ["all", f"{total:,.1f}"]])


def _facts(facts: Iterable[tuple[str, object]]) -> str:
    return _table([], [[name, shown_fact(value)] for name, value in facts], numbers=False)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = True) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        right = [' class="n"' if numbers and place else "" for place in range(len(cells))]
        return (
            "<tr>"
            + "".join(f"<{tag}{at}>{_text(cell)}</{tag}>" for at, cell in zip(right, cells, strict=True))
            + "</tr>"
        )

    top = f"<thead>{line(head, 'th')}</thead>" if head else ""
    return f'<div class="wide"><table>{top}<tbody>{"".join(line(row, "td") for row in rows)}</tbody></table></div>'


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _picture(png: bytes, words: str) -> str:
    """A picture within the page; nothing where there is none."""
    if not png:
        return ""
    data = base64.b64encode(png).decode("ascii")
    image = f'<img alt="{_text(words)}" src="data:image/png;base64,{data}">'
    return f'<figure><div class="wide">{image}</div><figcaption>{_text(words)}</figcaption></figure>'


def _text(value: object) -> str:
    return html.escape(str(value))
