"""The last events of the log: in order, bounded, without those of single requests; nothing once it is over."""

from __future__ import annotations

import logging

from igd_server.observe.recent import RecentEvents

_log = logging.getLogger("igd.server")


def test_the_last_events_are_kept_in_short_and_repeated_ones_counted() -> None:
    recent = RecentEvents()
    _log.warning("before")
    with recent.listening():
        for number in range(40):
            _log.warning("rolled_back", extra={"fields": {"catalogue": "films", "version": number, "detail": ""}})
        _log.warning("request", extra={"fields": {"path": "/v1/events"}})
        _log.warning("fallback", extra={"fields": {"request_id": "r"}})
        for _ in range(3):
            _log.error("store_lost", extra={"fields": {"detail": "x" * 1000}})
        _log.error("engine_failed")
    _log.warning("after")
    found = recent.latest()
    assert len(found) == 30
    assert [each.event for each in found[:3]] == ["engine_failed", "store_lost", "rolled_back"]
    assert (found[0].level, found[0].detail, found[0].times) == ("error", "", 1)
    assert (found[1].times, len(found[1].detail)) == (3, 300)
    assert found[2].detail == "catalogue: films, version: 39"
    assert found[0].at >= found[-1].at
