"""Exit codes of containers that are gone."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from dockpy.gone import REMEMBERED, Gone


def test_many_threads_remember_at_once(tmp_path: Path) -> None:
    gone = Gone(tmp_path)
    failures: list[BaseException] = []

    def work(start: int) -> None:
        try:
            for number in range(start, start + 1500):
                gone.remember(f"{number:064x}", number % 256)
        except BaseException as failure:
            failures.append(failure)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(n * 10_000,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert failures == []
    kept = [line.split() for line in (tmp_path / "gone").read_text().splitlines()[-REMEMBERED:]]
    assert len(kept) == REMEMBERED
    assert all(gone.exit_code(name) in (int(code), None) for name, code in kept)
