"""`igd bench serve`: what it asks, what it counts, and what it prints and draws."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
from matplotlib.image import imread

from igd_core.bench.http_pool import Answer, Target
from igd_core.bench.load import NO_ANSWER, TIMED_OUT, LoadArrays
from igd_core.bench.load_report import percentiles, summary, timeline
from igd_core.bench.serve import ServeBench, bench_rate, find_capacity
from igd_core.bench.traffic import HistoryTraffic, Mix, UserHistory, Verdict, made_up_histories, read_histories
from igd_core.cli.main import main
from igd_core.errors import DataError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TARGET = Target.of("http://127.0.0.1:8000")
HISTORIES = [
    UserHistory(user_id=f"bench-{user}", history=[f"i{user}", "j"], next_item=f"n{user}") for user in range(20)
]
MODEL = b'{"request_id":"x","source":"model","cached":false,"items":[]}'


def body_of(message: bytes) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(message.partition(b"\r\n\r\n")[2])
    return parsed


def traffic(**mix: Any) -> HistoryTraffic:
    return HistoryTraffic(TARGET, HISTORIES, Mix(body={"k": 5, "timeout_ms": 100}, **mix), seed=7)


def test_requests_are_recommendations_for_users_of_the_file() -> None:
    source = traffic()
    bodies = [body_of(source.request(number)) for number in range(200)]
    assert all(set(body) == {"k", "timeout_ms", "history"} for body in bodies)
    assert {tuple(body["history"]) for body in bodies} == {tuple(user.history) for user in HISTORIES}


def test_shares_of_events_users_and_repeats_are_those_asked_for() -> None:
    source = traffic(events=0.25, users=0.5)
    kinds: Counter[str] = Counter()
    events = []
    for number in range(4000):
        message = source.request(number)
        body = body_of(message)
        kind = "event" if "events" in body else "user" if "user_id" in body else "history"
        assert message.startswith(b"POST /v1/events " if kind == "event" else b"POST /v1/recommendations ")
        kinds[kind] += 1
        events += body.get("events", [])
    assert kinds["event"] == pytest.approx(1000, abs=120)
    assert kinds["user"] == pytest.approx(1500, abs=150)
    assert len({event["event_id"] for event in events}) == len(events)
    assert all(event["item_id"] == f"n{event['user_id'].removeprefix('bench-')}" for event in events)
    assert all(abs(event["timestamp"] / 1000 - time.time()) < 60 for event in events)
    many = HistoryTraffic(
        TARGET,
        [UserHistory(user_id=str(n), history=[str(n)], next_item="x") for n in range(10**5)],
        Mix(body={}, repeats=0.5),
        seed=1,
    )
    seen: set[bytes] = set()
    repeated = 0
    for number in range(2000):
        message = many.request(number)
        repeated += message in seen
        seen.add(message)
    assert repeated == pytest.approx(1000, abs=130)


def test_keys_are_used_in_turn_and_the_seed_decides_the_rest() -> None:
    source = traffic(keys=("igd_a", "igd_b"))
    messages = [source.request(number) for number in range(4)]
    keys = [message.partition(b"Bearer ")[2].partition(b"\r\n")[0] for message in messages]
    assert keys == [b"igd_a", b"igd_b", b"igd_a", b"igd_b"]
    again = traffic(keys=("igd_a", "igd_b"))
    assert [again.request(number) for number in range(4)] == messages


def problem(status: int, kind: str) -> Answer:
    body = json.dumps({"type": f"urn:igd:problem:{kind}", "status": status}).encode()
    return Answer(status=status, body=body, content_type=b"application/problem+json")


@pytest.mark.parametrize(
    ("answer", "verdict", "reason"),
    [
        (Answer(status=200, body=MODEL), Verdict.MODEL, None),
        (Answer(status=200, body=MODEL.replace(b"false", b"true")), Verdict.CACHED, None),
        (Answer(status=200, body=MODEL.replace(b"model", b"popularity")), Verdict.POPULARITY, None),
        (Answer(status=200, body=b"{}"), Verdict.UNEXPECTED, "200 without a source"),
        (Answer(status=204), Verdict.UNEXPECTED, "204 without a problem document"),
        (problem(503, "overloaded"), Verdict.PROBLEM, "503 overloaded"),
        (Answer(status=500, body=b"oops", content_type=b"text/plain"), Verdict.UNEXPECTED, "500 without a problem"),
        (Answer(status=400, body=b"[", content_type=b"application/problem+json"), Verdict.UNEXPECTED, "400 with a br"),
        (Answer(status=0, body=b"cannot connect"), Verdict.NO_ANSWER, "cannot connect"),
    ],
)
def test_answers_are_judged_by_what_they_hold(answer: Answer, verdict: Verdict, reason: str | None) -> None:
    source = traffic()
    source.request(0)
    assert source.judge(0, answer) == verdict
    assert [found.startswith(reason or "") for found in source.reasons] == [True] * (reason is not None)


def test_an_event_is_good_when_it_was_recorded() -> None:
    source = traffic(events=1.0)
    source.request(0)
    assert source.judge(0, Answer(status=200, body=b'{"accepted":1}')) == Verdict.RECORDED


REQUESTS = LoadArrays(
    planned=np.array([0.0, 0.1, 0.2, 1.0, 1.1, 2.0, 2.5]),
    sent=np.array([0.0, 0.2, 0.2, 1.0, 1.1, 2.0, np.nan]),
    done=np.array([0.1, 0.3, 0.7, 1.5, 1.2, 2.1, 4.5]),
    status=np.array([200, 200, 200, 200, 503, NO_ANSWER, TIMED_OUT], dtype=np.int16),
    verdict=np.array([0, 1, 0, 2, 4, 6, -1], dtype=np.int8),
)


def test_a_summary_counts_what_a_hand_would() -> None:
    found = summary(REQUESTS, 3.0, deadline_s=0.3)
    assert found["requests"] == 7
    assert found["statuses"] == {"given up": 1, "no answer": 1, "200": 4, "503": 1}
    assert found["answers"] == {"model": 2, "cached": 1, "popularity": 1, "problem": 1, "no_answer": 1}
    assert found["accepted_per_s"] == pytest.approx(4 / 3, abs=0.01)
    assert found["goodput_per_s"] == pytest.approx(2 / 3, abs=0.01)  # one was late, one by popularity
    assert found["latency_ms"]["accepted"]["max"] == 500
    assert found["latency_ms"]["accepted"]["p50"] == 350
    assert found["latency_ms"]["refused"]["max"] == 100
    assert found["latency_from_sending_ms"]["p50"] == 300
    assert found["sent_late_ms"]["max"] == 100


def test_a_timeline_says_the_same_second_by_second() -> None:
    rows = timeline(REQUESTS, 3.0, deadline_s=0.3)
    assert [(row["requests"], row["accepted"], row["good"], row["refused"], row["failed"]) for row in rows] == [
        (3, 3, 2, 0, 0),
        (2, 1, 0, 1, 0),
        (2, 0, 0, 0, 2),
    ]
    assert [row["p50_ms"] for row in rows] == [200, 500, None]
    hours = timeline(REQUESTS, 7200.0, deadline_s=0.3)
    assert len(hours) == 600
    assert (hours[0]["requests"], hours[0]["seconds"], hours[1]["second"]) == (7, 12, 12)


def test_percentiles_of_nothing_are_nothing() -> None:
    assert percentiles(np.array([])) == {}


class OneAtATime(BaseHTTPRequestHandler):
    """One request every 10 ms, whoever asks: 100 a second is all there is."""

    protocol_version = "HTTP/1.1"
    turn = threading.Lock()
    keys: ClassVar[set[str | None]] = set()

    def do_GET(self) -> None:
        self._answer(b"process_resident_memory_bytes 1048576.0\n")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.keys.add(self.headers["Authorization"])
        with self.turn:
            time.sleep(0.01)
        self._answer(MODEL)

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class Quiet(ThreadingHTTPServer):
    request_queue_size = 512

    def handle_error(self, *_: Any) -> None:  # the bench hangs up when it has seen enough
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with Quiet(("127.0.0.1", 0), OneAtATime) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def bench_of(port: int, **changes: Any) -> ServeBench:
    settings: dict[str, Any] = {
        "target": Target.of(f"http://127.0.0.1:{port}"),
        "histories": HISTORIES,
        "mix": Mix(body={}),
        "deadline_s": 1.0,
        "seconds": 0.5,
    }
    return ServeBench(**settings | changes)


def test_the_capacity_found_is_the_servers(port: int) -> None:
    found = find_capacity(bench_of(port))
    assert 30 < found["capacity_per_s"] <= 102  # a busy machine gives less, and never more
    assert [step["concurrency"] for step in found["steps"][:3]] == [1, 2, 4]
    # More clients bring no more answers, only longer waits; so it stops.
    assert len(found["steps"]) <= 7
    assert found["steps"][-1]["latency_ms"]["p50"] > found["steps"][0]["latency_ms"]["p50"]


def test_more_than_the_capacity_shows_as_lateness_and_lost_goodput(port: int) -> None:
    result = bench_rate(bench_of(port, deadline_s=0.2, seconds=1.0), rate=250, even=True)
    assert result.report["requests"] == 250
    assert result.report["goodput_per_s"] < 110
    assert result.report["latency_ms"]["accepted"]["p99"] > 800
    assert len(result.requests.planned) == 250


@pytest.mark.parametrize(
    ("changes", "match"),
    [({"seconds": 0.0}, "seconds"), ({"seconds": 1e6}, "seconds"), ({"connections": 0}, "connections")],
)
def test_a_run_has_bounds(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        bench_of(1, **changes)


@pytest.mark.parametrize("rate", [0.0, -1.0, 1e9, float("nan")])
def test_a_rate_has_bounds(rate: float) -> None:
    with pytest.raises(InputError, match="rate"):
        bench_rate(bench_of(1), rate=rate, even=True)


@pytest.fixture
def histories(tmp_path: Path) -> Path:
    path = tmp_path / "test.csv"
    path.write_text("user_id,history_item_ids,item_id\n7,1 2 3,4\n8,,5\n9,6,1\n")
    return path


def test_histories_are_read_as_prepared_and_empty_ones_left_out(histories: Path) -> None:
    assert read_histories(histories) == [
        UserHistory(user_id="bench-7", history=["1", "2", "3"], next_item="4"),
        UserHistory(user_id="bench-9", history=["6"], next_item="1"),
    ]
    histories.write_text("history_item_ids,item_id\n,5\n")
    with pytest.raises(InputError, match="no row has a history"):
        read_histories(histories)
    histories.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="item_id"):
        read_histories(histories)


def test_made_up_histories_hold_items_of_the_artifact_the_popular_ones_more_often(pristine_bundle: Path) -> None:
    from igd_core.artifact import load_artifact

    artifact = load_artifact(pristine_bundle)
    made = made_up_histories(pristine_bundle, seed=1)
    assert made == made_up_histories(pristine_bundle, seed=1)
    assert all(1 <= len(user.history) <= artifact.manifest.template.max_history for user in made)
    drawn = Counter(item for user in made for item in user.history)
    frequency = artifact.catalogue.frequency
    most, least = int(frequency.argmax()), int(frequency.argmin())
    assert set(drawn) <= set(artifact.catalogue.item_ids)
    assert drawn[artifact.catalogue.item_ids[most]] > drawn[artifact.catalogue.item_ids[least]]


def test_the_command_prints_json_and_draws(
    port: int, histories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot, key_file = tmp_path / "load.png", tmp_path / "key"
    key_file.write_text("igd_from_file\n")
    url = f"http://127.0.0.1:{port}"
    flags = ["--url", url, "--rate", "50", "--seconds", "1", "--histories", str(histories), "--key", f"@{key_file}"]
    assert main(["bench", "serve", *flags, "--metrics", f"{url}/metrics", "--plot", str(plot), "--json"]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert printed.err == ""
    assert (report["requests"], report["statuses"], report["answers"]) == (50, {"200": 50}, {"model": 50})
    assert report["goodput_per_s"] == 50
    assert report["server_memory_bytes"] == {"warm": 2**20, "end": 2**20, "max": 2**20}
    assert set(report["server_memory_timeline_bytes"]) == {2**20}
    assert 0 < len(report["server_memory_timeline_bytes"]) <= 60
    assert "Bearer igd_from_file" in OneAtATime.keys
    height, width, _ = imread(plot).shape
    assert (height > 800, width > 1000) == (True, True)


def test_the_command_prints_for_people_too(port: int, histories: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--url", f"http://127.0.0.1:{port}", "--histories", str(histories), "--seconds", "0.2"]
    assert main(["bench", "serve", *flags, "--rate", "30"]) == 0
    text = capsys.readouterr().out
    assert "6 requests, 30 a second (poisson)" in text
    assert "from the planned arrival" in text
    assert main(["bench", "serve", *flags, "--find-capacity"]) == 0
    assert "good answers a second, at" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--rate", "1", "--events", "2"], "events: 2 is not in 0..1"),
        (["--rate", "1", "--url", "ftp://x"], "url: 'ftp://x'"),
        (["--rate", "1", "--timeout-ms", "0"], "timeout_ms: 0"),
        (["--rate", "1", "--key", "@/no/such/file"], "key: /no/such/file"),
        (["--rate", "1", "--key", "a b"], "key: empty, or with characters"),
        (["--rate", "0"], "rate: 0"),
        (["--rate", "1", "--seconds", "1000000"], "seconds: 1000000.0 is not in 0.."),
        (["--rate", "1", "--find-capacity"], "--rate and --find-capacity given; one of --rate or --find-capacity is"),
        ([], "one of --rate or --find-capacity is needed"),
        (["--rate", "1", "--artifact", "a"], "--histories and --artifact given; one of"),
        (["--rate", "1", "--users", "1.0000001"], "users: 1.0000001 is not in 0..1"),
        (["--rate", "1", "--connections", "0"], "connections: 0 is not in 1..10000"),
        (["--find-capacity", "--plot", "x.png"], "plot: "),
    ],
)
def test_wrong_flags_are_one_line_and_code_2(
    flags: list[str], line: str, histories: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "serve", "--histories", str(histories), *flags]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"igd: {line}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("flags", "asked"), [([], {}), (["--k", "3", "--beams", "5"], {"k": 3, "beams": 5})])
def test_what_no_flag_says_is_left_to_the_server(
    flags: list[str], asked: dict[str, int], histories: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A k of ten would be refused by a catalogue of six."""
    asked_for: list[ServeBench] = []

    def stop(bench: ServeBench, **_: Any) -> None:
        asked_for.append(bench)
        raise InputError("enough")

    monkeypatch.setattr("igd_core.bench.serve.bench_rate", stop)
    assert main(["bench", "serve", "--histories", str(histories), "--rate", "1", *flags]) == 2
    assert asked_for[0].mix.body == {"timeout_ms": 10_000, **asked}


def test_load_goes_to_this_machine_unless_another_is_named(
    histories: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Target] = []

    def stop(bench: ServeBench, **_: Any) -> None:
        asked.append(bench.target)
        raise InputError("stopped by the test")

    monkeypatch.setattr("igd_core.bench.serve.bench_rate", stop)
    common = ["bench", "serve", "--rate", "1", "--histories", str(histories)]
    main(common)
    assert asked[-1].is_loopback
    assert "not this machine" not in capsys.readouterr().err
    main([*common, "--url", "https://recs.example"])
    assert asked[-1].host == "recs.example"
    assert "puts load on recs.example, which is not this machine" in capsys.readouterr().err


def test_an_interrupted_run_reports_what_it_has(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, answered = OneAtATime._answer, itertools.count(1)

    def interrupting(self: OneAtATime, body: bytes) -> None:
        answer(self, body)
        if next(answered) == 20:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(OneAtATime, "_answer", interrupting)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without it
    try:
        result = bench_rate(bench_of(port, seconds=300.0), rate=40, even=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert 15 < result.report["requests"] < 2000
    assert result.report["seconds"] < 60
