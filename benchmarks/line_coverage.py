"""Line coverage of components/ and pipeline/ by file, over every Python process that the tests start, Ray's included.

    .venv/bin/pip install coverage
    python benchmarks/line_coverage.py start .venv FOLDER     # from now on, each Python of .venv writes to FOLDER
    make test PYTEST_ARGS='-m ""'
    python benchmarks/line_coverage.py stop .venv
    python benchmarks/line_coverage.py report FOLDER > lines.json    # file -> [lines that ran, lines]
    python benchmarks/line_coverage.py compare before.json after.json [COMMIT]    # COMMIT: of before, if files moved

``coverage`` alone misses Ray's workers: Ray ends them without their exit handlers. So each process saves what it has
every two seconds. Copies of the project (a workspace of a test, what Ray carries to a node) count as the files
themselves.
Python 3.12 and newer count lines at little cost; with 3.11 the tests take about twice as long.
"""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_HOOK = """
import atexit, os, sys, threading, time

FOLDER = {folder!r}
ASIDE = ("dashboard.py", "dashboard/agent", "runtime_env/agent", "log_monitor", "monitor.py", "-m pip")


def start():
    if any(word in " ".join(sys.orig_argv) for word in ASIDE):
        return
    os.environ.setdefault("COVERAGE_CORE", "sysmon" if sys.version_info >= (3, 12) else "ctrace")
    import coverage

    measured = coverage.Coverage(
        data_file=FOLDER + "/lines", data_suffix=True, include=["*/components/*", "*/pipeline/*"],
        omit=["*/site-packages/*", "*/tests/*"], messages=False, check_preimported=True,
    )
    measured._warn_no_data = False
    measured.start()
    own, lock, leave = os.getpid(), threading.Lock(), os._exit

    def save():
        with lock:
            try:
                measured.save()
            except Exception:
                pass

    def keep_saving():
        while os.getpid() == own:
            time.sleep(2)
            save()

    def save_and_leave(code):
        if os.getpid() == own:
            save()
        leave(code)

    threading.Thread(target=keep_saving, daemon=True).start()
    atexit.register(save)
    os._exit = save_and_leave


start()
"""


def packages(venv: Path) -> Path:
    """Where a virtual environment has its packages."""
    return next((venv / "lib").glob("python3.*")) / "site-packages"


def start(venv: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (packages(venv) / "line_coverage_hook.py").write_text(_HOOK.format(folder=str(folder.resolve())))
    (packages(venv) / "line_coverage.pth").write_text("import line_coverage_hook\n")


def stop(venv: Path) -> None:
    for name in ("line_coverage_hook.py", "line_coverage.pth"):
        (packages(venv) / name).unlink(missing_ok=True)


def report(folder: Path) -> dict[str, tuple[int, int]]:
    """File -> (statements that ran in any process, statements)."""
    from coverage.python import PythonParser

    ran: dict[str, set[int]] = defaultdict(set)
    for path in folder.glob("lines.*"):
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            try:
                names = dict(database.execute("select id, path from file"))
                rows = database.execute("select file_id, numbits from line_bits").fetchall()
            except sqlite3.Error:  # of a process that was killed while it saved
                continue
        for number, bits in rows:
            if found := re.search(r"/((?:components|pipeline)/.*\.py)$", names[number]):
                ran[found[1]] |= {
                    8 * byte + bit for byte, value in enumerate(bits) for bit in range(8) if value >> bit & 1
                }
    counts = {}
    for path in sorted(path for top in ("components", "pipeline") for path in (ROOT / top).rglob("*.py")):
        parser = PythonParser(filename=str(path))
        parser.parse_source()
        if parser.statements:
            name = path.relative_to(ROOT).as_posix()
            counts[name] = (len(parser.statements & ran[name]), len(parser.statements))
    return counts


def moved_since(commit: str) -> dict[str, str]:
    """File at a commit -> its name now, of the files that git takes for moved."""
    command = ["git", "diff", "--name-status", "--find-renames=30%", commit, "HEAD"]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return {old: new for _, old, new in (line.split("\t") for line in lines if line.startswith("R"))}


def compare(before: Path, after: Path, commit: str = "HEAD") -> None:
    """Prints the files whose share has fallen, and both totals."""
    old, new = (json.loads(path.read_text()) for path in (before, after))
    moved = moved_since(commit)
    old = {moved.get(name, name): counts for name, counts in old.items()}
    print(f"{len(old.keys() & new.keys())} of {len(old)} files before are found again")
    for name in sorted(old.keys() & new.keys()):
        was, now = (ran / lines for ran, lines in (old[name], new[name]))
        if now < was - 0.001:
            print(f"{name}: {was:.1%} -> {now:.1%}, {new[name][1] - new[name][0]} lines do not run")
    for title, counts in (("before", old), ("after", new)):
        print(f"{title}: {sum(ran for ran, _ in counts.values()) / sum(lines for _, lines in counts.values()):.2%}")


def main() -> None:
    command, *paths = sys.argv[1:] or ["help"]
    places = [Path(path) for path in paths]
    if command == "start" and len(places) == 2:
        start(*places)
    elif command == "stop" and len(places) == 1:
        stop(*places)
    elif command == "report" and len(places) == 1:
        print(json.dumps(report(*places), indent=0))
    elif command == "compare" and len(places) in (2, 3):
        compare(*places[:2], *paths[2:])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
