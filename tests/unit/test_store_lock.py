"""The write lock's bounded waits."""

from __future__ import annotations

import os
import threading

import pytest

from iris_kv.errors import BusyError
from iris_kv.store.lock import WriteLock


def test_a_wait_that_was_given_up_is_taken_over_and_leaves_the_lock_free(tmp_path):
    folder = os.open(tmp_path, os.O_RDONLY)
    holder, waiter, other = (WriteLock(folder, timeout_s) for timeout_s in (1, 0.02, 0.02))
    taken = threading.Event()

    def take() -> None:
        with waiter.held():
            taken.set()

    with holder.held():
        for _ in range(2):
            with pytest.raises(BusyError, match=f"process {os.getpid()} "):
                take()
        waiter._timeout_s = 10
        thread = threading.Thread(target=take)
        thread.start()
    thread.join(10)

    assert taken.is_set()
    for _ in range(3):
        take()
        with other.held(wait=False) as held:
            assert held
    for lock in (holder, waiter, other):
        lock.close()
    os.close(folder)


def test_a_lock_in_use_is_not_waited_for_when_asked_not_to(tmp_path):
    folder = os.open(tmp_path, os.O_RDONLY)
    one, two = WriteLock(folder, 1), WriteLock(folder, 1)
    with one.held(), two.held(wait=False) as held:
        assert not held
    with two.held(wait=False) as held:
        assert held
    one.close()
    two.close()
    os.close(folder)
