"""A run on several devices of this machine: a process for each, and one message when one of them ends."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.multiprocessing.spawn import ProcessContext, ProcessException, start_processes

from igd_core import errors
from igd_core.errors import IGDError, InputError, TuningError
from igd_core.tuning.checkpoints import CheckpointFolder
from igd_core.tuning.record import RECORD, read_record
from igd_core.tuning.run import tune
from igd_core.tuning.settings import TuningSettings
from igd_core.tuning.team import PeerLost, ToldElsewhere, joined, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.process import BaseProcess

    from igd_core.tuning.inputs import RunInputs
    from igd_core.tuning.team import Team

_GRACE_S = 5.0
"""For the others to end by themselves when one has ended; then they are told to, and killed after as long again."""
_FAILED = 2


def tune_on_devices(
    inputs: RunInputs,
    settings: TuningSettings,
    *,
    team: Team,
    resume: bool = False,
    tell: Callable[[Sequence[str]], None] | None = None,
) -> dict[str, Any]:
    """Tune on ``team.size`` devices of this machine, a process for each; see `tune`.

    Raises:
        InputError: as `tune` does; or more devices than there are.
        ModelError: as `tune` does.
        TuningError: as `tune` does; or a process was killed, and all have ended. What the run has saved stays.
    """
    if (kind := kind_of(inputs.device)) == "cuda" and team.size > torch.cuda.device_count():
        raise InputError(f"devices: {team.size}, and this machine has {torch.cuda.device_count()} GPUs")
    if kind == "cpu" and team.size > (cores := os.cpu_count() or 1):
        raise InputError(f"devices: {team.size}, and this machine has {cores} cores")
    run_together(_tune_here, (inputs, settings.to_json(), resume, tell), team=team, device=kind, out=inputs.out)
    record = read_record(inputs.out / RECORD)
    if record is None:
        raise TuningError(f"{inputs.out / RECORD}: gone")
    return record


def _tune_here(
    team: Team,
    inputs: RunInputs,
    settings: dict[str, Any],
    resume: bool,
    tell: Callable[[Sequence[str]], None] | None,
) -> None:
    tune(inputs, TuningSettings.read(settings), resume=resume, tell=tell, team=team)


def run_together(work: Callable[..., None], args: tuple[Any, ...], *, team: Team, device: str, out: Path) -> None:
    """Call ``work(team, *args)`` in ``team.size`` processes of this machine; when one fails, the others are ended.

    Args:
        work: a function of a module, by which the processes find it.
        args: of it; they are pickled, so settings go as JSON.
        team: size, and whether weights are split.
        device: ``cpu`` or ``cuda``.
        out: the run's folder, for the message.

    Raises:
        IGDError: what the first process to fail said.
    """
    # The first process that it starts imports torch and transformers, once for all.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "igd_core.tuning.trainer"])
    # It warns of processes that it has to end; the error below says so.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="igd-tune-") as scratch:
        processes = start_processes(
            _one_process,
            (work, args, team, device, scratch),
            nprocs=team.size,
            join=False,
            start_method="forkserver",
        )
        try:
            while not processes.join(grace_period=_GRACE_S):
                pass
        except ProcessException:
            raise _cause(processes, Path(scratch), out) from None
        finally:  # Ctrl-C leaves them to us
            for process in processes.processes:
                if process.is_alive():
                    process.terminate()
                    process.join()


def _one_process(
    rank: int, work: Callable[..., None], args: tuple[Any, ...], team: Team, device: str, scratch: str
) -> None:
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    size = str(team.size)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    if device == "cpu":
        threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // team.size))
        os.environ["OMP_NUM_THREADS"] = str(threads)  # accelerate would choose for us, with a warning
        torch.set_num_threads(threads)
        if sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # not at an address that others reach
    told: dict[str, str] | None = None
    try:
        with joined(device, shards=team.shards, rendezvous=f"file://{scratch}/rendezvous") as here:
            work(here, *args)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except (ToldElsewhere, PeerLost):
        sys.exit(_FAILED)
    except (IGDError, OSError) as error:
        told = {"kind": type(error).__name__, "message": str(error)}
    except Exception as error:  # noqa: BLE001 - its line goes to the one who asked, and the rest here
        traceback.print_exc()
        told = {"kind": "", "message": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
    if told is not None:
        Path(scratch, f"told-{rank}.json").write_text(json.dumps(told), encoding="utf-8")
        sys.exit(_FAILED)


def _end_with(parent: BaseProcess | None) -> None:
    """End this process when the one that asked for it has ended, killed perhaps: nobody would hear of the run."""
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _cause(processes: ProcessContext, scratch: Path, out: Path) -> IGDError:
    """Why a run ended: the processes that lost another are not to blame."""
    size = len(processes.processes)
    killed = [
        (rank, -process.exitcode)
        for rank, process in enumerate(processes.processes)
        if process.exitcode is not None and process.exitcode < 0 and -process.exitcode != signal.SIGTERM
    ]
    for rank in range(size):
        file = scratch / f"told-{rank}.json"
        if not file.is_file():
            continue
        told = json.loads(file.read_text("utf-8"))
        kind = getattr(errors, told["kind"], None)
        if kind is not None:
            found: IGDError = kind(told["message"])
            return found
        if not killed:
            return TuningError(f"process {rank} of {size}: {told['message']}; {_kept(out)}")
    if killed:
        rank, number = killed[0]
        return TuningError(f"process {rank} of {size} was killed ({signal.Signals(number).name}); {_kept(out)}")
    return TuningError(f"a process of {size} was ended from outside; {_kept(out)}")


def _kept(out: Path) -> str:
    if not (out / RECORD).is_file():
        return "nothing was written"
    newest = CheckpointFolder.of(out).newest()
    return (
        f"{newest} is kept: --resume goes on from it" if newest else "there is no checkpoint yet: --resume begins anew"
    )
