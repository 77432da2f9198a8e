"""Trust: what others may write is neither believed nor written, and the log says which file it is."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.endpoint import Endpoint, fault
from support.gateway import PASSWORD, Gateway, Result

from mailgate.journal.sqlite import FILE, LOCK

IS_ROOT = os.geteuid() == 0
NOBODY = 65534
MESSAGE = b"Message-ID: <a@b>\n\n"
NAMES = ["settings", "password", "journal", "hold", "ca"]


class Files:
    """The gateway's files, each in a folder of its own, so that it can be spoilt alone."""

    def __init__(self, folder: Path, gateway: Gateway) -> None:
        self.gateway = gateway
        self.paths = {
            name: folder / "files" / name / "it" for name in ("settings", "password", "journal", "hold", "log", "ca")
        }
        for name, path in self.paths.items():
            path.parent.mkdir(parents=True)
            if name in ("journal", "hold"):
                path.mkdir()
            else:
                path.write_text(f"{PASSWORD}\n" if name == "password" else "")
            path.chmod(0o700 if path.is_dir() else 0o600)
        self.paths["password"].chmod(0o640)
        gateway.settings |= {"PASSWORD": None, "PASSWORD_FILE": self.paths["password"], "CA_FILE": self.paths["ca"]}
        gateway.settings |= {"JOURNAL": self.paths["journal"], "HOLD": self.paths["hold"], "LOG": self.paths["log"]}

    def run(self, spoil: Callable[[], object] = lambda: None) -> Result:
        """Run the gateway, with another log than the file's."""
        self.gateway.command()
        settings = self.paths["settings"]
        settings.write_bytes(self.gateway.env_file.read_bytes())
        spoil()
        environ = {"MAIL_GATEWAY_LOG": str(self.gateway.log)}
        return self.gateway.run("--env-file", str(settings), "info@example.com", message=MESSAGE, environ=environ)


@pytest.fixture
def files(tmp_path: Path, gateway: Gateway) -> Files:
    return Files(tmp_path, gateway)


SPOILT: dict[str, Callable[[Path], object]] = {
    "group may write it": lambda path: path.chmod(path.stat().st_mode | 0o020),
    "others may write it": lambda path: path.chmod(path.stat().st_mode & 0o770 | 0o002),
    "group may write its folder": lambda path: path.parent.chmod(0o770),
    "others may write its folder": lambda path: path.parent.chmod(0o707),
}
if IS_ROOT:
    SPOILT["another user's"] = lambda path: os.chown(path, NOBODY, -1)
    SPOILT["in another user's folder"] = lambda path: os.chown(path.parent, NOBODY, -1)


def test_what_only_root_and_the_user_may_write_is_trusted(files: Files, endpoint: Endpoint) -> None:
    assert files.run().ending == (0, "2.0.0", "delivered")


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
@pytest.mark.parametrize("name", NAMES)
def test_what_others_may_write_is_a_wrong_setting_and_named(
    files: Files, endpoint: Endpoint, name: str, spoil: Callable[[Path], object]
) -> None:
    path = files.paths[name]
    result = files.run(lambda: spoil(path))
    assert result.ending == (75, "4.3.5", "settings")
    assert str(path.parent) in result.facts["cause"]
    assert endpoint.connections == 0


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_log_that_others_may_write_is_not_written(
    files: Files, endpoint: Endpoint, spoil: Callable[[Path], object]
) -> None:
    path = files.paths["log"]
    spoil(path)
    result = files.gateway.run("info@example.com", message=MESSAGE)
    assert (result.status, result.out[:5]) == (75, b"4.3.5")
    assert path.read_text() == ""
    assert endpoint.connections == 0


@pytest.mark.parametrize("name", [*NAMES, "log"])
def test_in_a_sticky_folder_others_can_not_replace_what_is_ours(files: Files, endpoint: Endpoint, name: str) -> None:
    files.paths[name].parent.chmod(0o1777)
    assert files.run().ending == (0, "2.0.0", "delivered")


@pytest.mark.skipif(not IS_ROOT, reason="only root can make another user's link")
@pytest.mark.parametrize("name", [*NAMES, "log"])
def test_a_link_that_another_user_has_left_in_a_sticky_folder_is_not_followed(
    files: Files, endpoint: Endpoint, tmp_path: Path, name: str
) -> None:
    path = files.paths[name]
    files.gateway.command()
    files.paths["settings"].write_bytes(files.gateway.env_file.read_bytes())
    (tmp_path / "real").mkdir()
    path.rename(tmp_path / "real" / "it")
    path.symlink_to(tmp_path / "real" / "it")
    os.lchown(path, NOBODY, -1)
    path.parent.chmod(0o1777)
    env_file = files.paths["settings"] if name == "settings" else files.gateway.env_file
    result = files.gateway.run("--env-file", str(env_file), "info@example.com", message=MESSAGE)
    assert (result.status, result.out[:5]) == (75, b"4.3.5")
    assert endpoint.connections == 0


def test_the_secrets_of_kubernetes_are_links_and_trusted(files: Files, endpoint: Endpoint) -> None:
    """The mount is everybody's to write and sticky; what counts is who may write what the links lead to."""
    path = files.paths["password"]
    mount = path.parent
    path.unlink()
    (mount / "..2026_11_22").mkdir(mode=0o755)
    (mount / "..2026_11_22" / "it").write_text(PASSWORD)
    (mount / "..2026_11_22" / "it").chmod(0o440)
    (mount / "..data").symlink_to("..2026_11_22")
    path.symlink_to("..data/it")
    mount.chmod(0o1777)
    assert files.run().ending == (0, "2.0.0", "delivered")
    assert endpoint.requests[0].call[0][2] == PASSWORD


def test_a_systemd_credential_is_trusted(files: Files, endpoint: Endpoint) -> None:
    path = files.paths["password"]
    path.chmod(0o400)
    path.parent.chmod(0o500)
    assert files.run().ending == (0, "2.0.0", "delivered")


@pytest.mark.parametrize("name", [FILE, LOCK])
def test_no_link_is_followed_in_the_journal_s_folder(
    files: Files, endpoint: Endpoint, tmp_path: Path, name: str
) -> None:
    files.run()
    target = tmp_path / "target"
    target.write_text("precious")
    target.chmod(0o600)
    path = files.paths["journal"] / name
    path.unlink()
    path.symlink_to(target)
    result = files.run()
    assert result.ending == (75, "4.3.5", "settings")
    assert f"journal is a symbolic link: {path}" in result.facts["cause"]
    assert target.read_text() == "precious"
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("name", ["tmp", "new", "cur"])
def test_no_link_is_followed_in_the_hold_folder(files: Files, endpoint: Endpoint, tmp_path: Path, name: str) -> None:
    endpoint.answers = [fault(2, "x")]
    (tmp_path / "elsewhere").mkdir()
    (files.paths["hold"] / name).symlink_to(tmp_path / "elsewhere")
    result = files.run()
    assert result.ending == (75, "4.3.5", "settings")
    assert str(files.paths["hold"] / name) in result.facts["cause"]
    assert not list((tmp_path / "elsewhere").iterdir())
