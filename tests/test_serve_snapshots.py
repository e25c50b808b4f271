"""Sessions that outlive a server: killed, drained, taken over, given away; and what the vault keeps."""

from __future__ import annotations

import os
import time

import pytest
from serving import TEXT, Seat, until, worker

from streamchar.errors import InputError
from streamchar.serve import floor, vault
from streamchar.serve.floor import Opening
from streamchar.serve.protocol import (
    Playhead,
    ProtocolError,
    Say,
    Snapshot,
    Start,
    Stop,
)
from streamchar.serve.vault import KEEP, Vault


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    made = worker(tmp_path_factory.mktemp("vault"))
    yield made
    made.close()


def resume(engine, session, frames):
    start, record, path, later = engine.floor.vault.find(session, frames)
    return Seat(engine, start, Opening(path=path, later=tuple(later)), record=record)


@pytest.mark.parametrize("cut", [0.0, 1.0, 2.4])
def test_a_killed_server_goes_on_without_a_word_twice_or_lost(tmp_path, cut):
    """The second engine knows nothing but the folder; the client holds `cut` chunks less than was sent."""
    first = worker(tmp_path)
    seat = Seat(first, Start(text=TEXT))
    seat.send(Say(text="and more", id=1))
    seat.wait("spoken", 7)
    seat.read()
    held = max(0, seat.frames - round(cut * 33))
    first.floor.over = True  # as a kill: nothing is saved any more
    seen = [word for word in seat.of("spoken") if word.end * 24 <= held + 1e-3]
    second = worker(tmp_path)
    again = resume(second, seat.live.id, held)
    ready = again.wait("ready")
    assert ready.resumed and ready.session == seat.live.id and ready.frames <= held
    again.wait("idle")
    later = again.of("spoken")
    assert later[0].index == ready.spoken <= len(seen), "nothing is left out"
    everything = {word.index: word for word in (*seen, *later)}
    assert [everything[i].text for i in range(14)] == [*TEXT.split(), "and", "more"]
    for word in later:  # what both have is the same word at the same time
        if word.index < len(seen):
            assert word == seen[word.index]
    first.close()
    second.close()


def test_a_drained_server_loses_nothing(tmp_path):
    first = worker(tmp_path, speed=20)
    seat = Seat(first, Start(text=TEXT))
    seat.wait("spoken", 3)
    first.drain()
    stopped = seat.wait("stopped")
    assert stopped.reason == "restart" and stopped.frames == seat.frames
    with pytest.raises(ProtocolError, match="restarted"):
        Seat(first)
    first.close()
    second = worker(tmp_path)
    again = resume(second, stopped.session, stopped.frames)
    assert again.wait("ready").frames == stopped.frames
    again.wait("idle")
    both = [word.index for word in (*seat.of("spoken"), *again.of("spoken"))]
    assert both == list(range(12)), "each word once"
    second.close()


def test_who_restores_a_session_takes_it_from_another_server(tmp_path):
    first, second = worker(tmp_path), worker(tmp_path)  # they share the folder
    seat = Seat(first, Start(text=TEXT * 5))
    seat.wait("spoken", 3)
    again = resume(second, seat.live.id, seat.frames)
    error = seat.wait("error")
    assert error.fatal and "another server" in error.message
    until(lambda: not first.sessions)
    again.wait("spoken", 3)
    assert not again.of("error")
    first.close()
    second.close()


def test_a_client_that_is_back_early_takes_its_session_over(engine):
    seat = Seat(engine, Start(text=TEXT))
    seat.wait("spoken", 2)
    engine.take_over(seat.live.id)
    assert seat.wait("error").fatal and seat.live.id not in engine.floor.lives
    engine.take_over(seat.live.id)  # nobody has it
    again = resume(engine, seat.live.id, seat.frames)
    again.wait("idle")
    everything = {word.index: word.text for word in (*seat.of("spoken"), *again.of("spoken"))}
    assert [everything[i] for i in range(12)] == TEXT.split()
    engine.gone(again.live)


def test_a_client_that_must_report_and_does_not_gives_its_place_away(tmp_path):
    engine = worker(tmp_path, reports=True)
    silent, talking = Seat(engine, Start(text="hello")), Seat(engine, Start(text="hello"))
    deadline = time.monotonic() + 60
    while silent.live.id not in engine.floor.parked and time.monotonic() < deadline:
        talking.read()
        talking.send(Playhead(at=max(0.0, talking.frames / 24 - 0.3)))
        silent.read()
        time.sleep(0.1)
    assert silent.live.id in engine.floor.parked and talking.live.id not in engine.floor.parked
    silent.send(Playhead(at=silent.frames / 24))
    until(lambda: silent.live.id not in engine.floor.parked)
    engine.close()


def aged(folder, session, hours=2.0):
    """Everything that is kept of a session was written some hours ago."""
    then = time.time() - 3600 * hours
    for path in folder.glob(f"{session}.*"):
        os.utime(path, (then, then))


def test_snapshots_go_after_an_hour_though_nobody_comes(tmp_path, monkeypatch):
    """Another server's and half-written ones too; not those of a session that is open, however long it listens."""
    monkeypatch.setattr(floor, "SWEEP_SECONDS", 0.05)
    engine = worker(tmp_path)
    lost, listening = Seat(engine, Start(text=TEXT)), Seat(engine, Start(text=TEXT))
    for seat in (lost, listening):
        seat.wait("idle")
    engine.gone(lost.live)
    until(lambda: lost.live.id not in engine.floor.lives)
    half, foreign, fresh = "0" * 32, "1" * 32, "2" * 32
    for name in (f"{half}.start", f"{foreign}.start", f"{foreign}.{33:012d}.json", f"{fresh}.start"):
        (tmp_path / name).write_text("{}")
    for session in (half, foreign, lost.live.id, listening.live.id):
        aged(tmp_path, session)
    until(lambda: {path.name[:32] for path in tmp_path.iterdir()} == {fresh, listening.live.id})
    assert engine.floor.vault.find(listening.live.id, 0)
    engine.close()


def test_many_sessions_do_not_push_out_one_that_is_played(tmp_path, monkeypatch):
    monkeypatch.setattr(vault, "MAX_SESSIONS", 1)
    old, young, younger = "a" * 32, "b" * 32, "c" * 32
    for session in (old, young, younger):
        (tmp_path / f"{session}.{33:012d}.json").write_text("{}")
    aged(tmp_path, old, hours=0.5)
    Vault(tmp_path)
    assert {path.name[:32] for path in tmp_path.iterdir()} == {young, younger}


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_only_its_user_can_read_the_folder(tmp_path):
    made, found, mixed = tmp_path / "made", tmp_path / "found", tmp_path / "mixed"
    Vault(made)
    for folder in (found, mixed):
        folder.mkdir()
        folder.chmod(0o755)
        (folder / f"{'0' * 32}.start").touch()
    Vault(found)
    assert [folder.stat().st_mode & 0o777 for folder in (made, found)] == [0o700, 0o700]
    (mixed / "letters.txt").touch()
    with pytest.raises(InputError, match="others can read the snapshot folder .*mixed.* a folder of its own"):
        Vault(mixed)
    assert mixed.stat().st_mode & 0o777 == 0o755
    mixed.chmod(0o700)
    Vault(mixed)


def test_the_vault_keeps_few_and_looks_ids_up_only(tmp_path):
    engine = worker(tmp_path)
    seat = Seat(engine, Start(text=TEXT * 3))
    seat.wait("spoken", 20)
    seat.send(Snapshot())
    assert seat.wait("saved").session == seat.live.id
    assert len(list(tmp_path.glob("*.json"))) <= KEEP
    for name in ("../../etc/passwd", "", "0" * 32, "*"):
        with pytest.raises(ProtocolError) as caught:
            engine.floor.vault.find(name, 0)
        assert caught.value.code == "unknown-session"
    seat.send(Stop())
    seat.wait("stopped")
    until(lambda: not list(tmp_path.iterdir()))  # asked to end: nothing stays
    engine.close()
