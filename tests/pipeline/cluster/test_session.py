"""What prevents a Ray of this machine is told with the variable that mends it. Real sessions: test_listening."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ray._private.utils import validate_socket_filepath

from pipeline.cluster.loopback import on_loopback
from pipeline.cluster.session import _connection_error, check_temporary_folder, ray_session
from pipeline.config.schema import load_params
from pipeline.errors import UserError
from tests.pipeline.workspace import ROOT

pytestmark = pytest.mark.unit

REMEDY = "set RAY_TMPDIR to a folder with a short path in ASCII, as /tmp"


@pytest.mark.parametrize("key", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize("letter", ["x", "\N{LATIN SMALL LETTER U WITH DIAERESIS}"])
def test_a_folder_in_which_no_socket_of_rays_can_lie_is_refused_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, key: str, letter: str
) -> None:
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setenv(key, f"/{letter * 94}")
    with pytest.raises(UserError) as caught:
        check_temporary_folder()
    assert str(caught.value).startswith(f"{key}: /{letter * 94}: ")
    assert str(caught.value).endswith(REMEDY)
    monkeypatch.setenv(key, f"/{letter}")
    if letter == "x":
        check_temporary_folder()
    else:
        with pytest.raises(UserError, match=r"has letters beyond ASCII"):
            check_temporary_folder()


def test_without_a_variable_the_folder_of_ray_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    check_temporary_folder()  # /tmp/ray
    monkeypatch.setattr("ray._common.utils.get_default_system_temp_dir", lambda: "/" + "x" * 94)
    with pytest.raises(UserError) as caught:
        check_temporary_folder()
    assert str(caught.value).startswith(f"/{'x' * 94}/ray: ")
    assert str(caught.value).endswith(REMEDY)


def test_the_longest_folder_is_that_which_ray_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_taken(length: int) -> bool:
        monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * (length - 1))
        try:
            check_temporary_folder()
        except UserError:
            return False
        return True

    def is_rays(length: int) -> bool:
        folder = "/" + "x" * (length - 1)
        try:
            validate_socket_filepath(
                f"{folder}/ray/session_2026-11-28_07-42-10_123456_{os.getpid()}/sockets/plasma_store"
            )
        except OSError:
            return False
        return True

    taken = [is_taken(length) for length in range(2, 80)]
    assert taken == [is_rays(length) for length in range(2, 80)]
    assert 20 < sum(taken) < 70


@pytest.mark.parametrize("before", [None, "/somewhere"])
def test_a_session_that_fails_leaves_the_environment_as_it_was(
    monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    """So does one that starts: test_listening."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if before:
        monkeypatch.setenv("PYTHONPATH", before)
    monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * 94)
    variables = dict(os.environ)
    with pytest.raises(UserError), ray_session(load_params(ROOT / "params.yaml").cluster, dashboard=False):
        pass
    assert dict(os.environ) == variables


def test_a_session_is_refused_before_anything_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * 94)
    cluster = load_params(ROOT / "params.yaml").cluster
    with (
        pytest.raises(UserError, match=r"^RAY_TMPDIR: /x+: \d+ bytes too long"),
        ray_session(cluster, dashboard=False),
    ):
        pass


@pytest.mark.parametrize("home", ["/dev/null", None])
def test_a_home_that_keeps_no_token_is_named_with_both_ways_out(
    monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    if home is None:
        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # as of a container's user
    else:
        monkeypatch.setenv("HOME", home)
    with pytest.raises(UserError) as caught, on_loopback():
        pass
    assert str(caught.value).startswith("HOME: Ray's token cannot be written to ~/.ray (")
    assert str(caught.value).endswith(
        "set HOME to a folder that can be written, or RAY_AUTH_TOKEN to a secret of your own"
    )
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    with on_loopback():
        pass


def test_an_error_about_rays_files_asks_for_another_place_of_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").write_text("a file where a folder belongs")
    with pytest.raises(OSError, match="Not a directory") as caught:
        (tmp_path / "ray" / "session_1").mkdir()
    first, second = str(_connection_error("local", caught.value)).splitlines()
    assert (
        first
        == f"cluster.address: local: Ray does not start on this machine ({tmp_path}/ray/session_1: Not a directory)"
    )
    assert second.startswith("set RAY_TMPDIR to a folder that can be written")
    assert "\n" not in str(_connection_error("local", RuntimeError("no raylet")))
