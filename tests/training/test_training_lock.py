"""One writer a run directory: races have one winner, dead holders do not block."""

import os
import signal
import time

import pytest

from sfumato.core.errors import RunLocked
from sfumato.training.lock import only_writer


def test_fifty_races_have_one_winner_each(tmp_path):
    for race in range(50):
        folder = tmp_path / str(race)
        start_out, start_in = os.pipe()
        end_out, end_in = os.pipe()
        said_out, said_in = os.pipe()
        children = []
        for _ in range(2):
            pid = os.fork()
            if pid == 0:
                try:
                    os.close(start_in), os.close(end_in)
                    os.read(start_out, 1)
                    try:
                        with only_writer(folder):
                            os.write(said_in, b"w")
                            os.read(end_out, 1)
                    except RunLocked as error:
                        os.write(said_in, b"l" if f"pid {os.getpid()}" not in str(error) else b"?")
                finally:
                    os._exit(0)
            children.append(pid)
        os.close(start_in)
        said = b""
        while len(said) < 2:
            said += os.read(said_out, 2)
        os.close(end_in)
        for pid in children:
            os.waitpid(pid, 0)
        for handle in (start_out, end_out, said_out, said_in):
            os.close(handle)
        assert sorted(said) == sorted(b"wl")


def test_the_message_says_who(tmp_path):
    with only_writer(tmp_path):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                with only_writer(tmp_path):
                    pass
            except RunLocked as error:
                text = str(error)
                code = 0 if f"held by pid {os.getppid()} on host" in text and "since 20" in text else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with only_writer(tmp_path):
        pass


def test_the_same_process_cannot_write_twice(tmp_path):
    with only_writer(tmp_path), pytest.raises(RunLocked), only_writer(tmp_path):
        pass


def test_a_lock_kept_by_the_orphan_of_a_dead_holder_is_broken(tmp_path):
    out, into = os.pipe()
    holder = os.fork()
    if holder == 0:
        with only_writer(tmp_path):
            orphan = os.fork()
            if orphan == 0:
                time.sleep(60)
                os._exit(0)
            os.write(into, orphan.to_bytes(4, "little"))
            time.sleep(60)
        os._exit(0)
    orphan = int.from_bytes(os.read(out, 4), "little")
    try:
        with pytest.raises(RunLocked, match=f"pid {holder}"), only_writer(tmp_path):
            pass
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        again = pytest.raises(RunLocked, match=f"pid {os.getpid()}")
        with only_writer(tmp_path), again, only_writer(tmp_path):
            pass
    finally:
        os.kill(orphan, signal.SIGKILL)
        os.close(out), os.close(into)
