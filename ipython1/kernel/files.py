"""Where a cluster keeps its files, and how the secret ones are written."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

#: File of each kind of FURL, in the security folder.
FURL_FILES = {
    "multiengine": "ipcontroller-mec.furl",
    "task": "ipcontroller-tc.furl",
    "engine": "ipcontroller-engine.furl",
    "view": "ipcontroller-view.furl",
}

# No leading dot: neither '..' nor a hidden folder.
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


class ClusterFiles:
    """The paths of one cluster. Making one touches no file.

    Parameters
    ----------
    cluster : str
        Name of the cluster: letters, digits, and ``._-`` (no leading dot).
    root : Path, optional
        Folder of all clusters; ``$IPYTHON1_DIR`` or ``~/.ipython1`` where not given.

    Raises
    ------
    ValueError
        `cluster` is not such a name.

    Attributes
    ----------
    folder, security, log, run : Path
        The cluster's own folder, and those in it for secrets, logs and state.
    certificate : Path
        Certificate and private key of the controller (PEM).
    state : Path
        What `ipcluster` knows of the running cluster (JSON).
    detached : Path
        Folder of the work that goes on without its client.
    """

    def __init__(self, cluster: str = "default", root: Path | None = None) -> None:
        if not _NAME.fullmatch(cluster):
            raise ValueError(
                f"{cluster!r} cannot be the name of a cluster. Use letters, digits, '_', '-' and '.', "
                "and begin with no '.'."
            )
        self.cluster = cluster
        self.root = (default_root() if root is None else Path(root)).absolute()  # others have other folders
        self.folder = self.root / cluster
        self.security = self.folder / "security"
        self.log = self.folder / "log"
        self.run = self.folder / "run"
        self.certificate = self.security / "ipcontroller.pem"
        self.state = self.run / "ipcluster.json"
        self.detached = self.run / "detached"

    def __repr__(self) -> str:
        return f"ClusterFiles({self.cluster!r}, {str(self.root)!r})"

    def furl(self, kind: str) -> Path:
        """The FURL file of `kind`: multiengine, task, engine or view."""
        return self.security / FURL_FILES[kind]

    def create(self) -> None:
        """Make the folders, open to their owner only, also where they exist already."""
        # The root may be a folder that is not ours alone: made private, never changed.
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self.folder, self.security, self.log, self.run):
            folder.mkdir(mode=0o700, exist_ok=True)
            folder.chmod(0o700)


def default_root() -> Path:
    """The folder of all clusters of this user: ``$IPYTHON1_DIR`` or ``~/.ipython1``."""
    given = os.environ.get("IPYTHON1_DIR")
    return Path(given).expanduser() if given else Path.home() / ".ipython1"


def known_clusters(root: Path | None = None) -> list[str]:
    """Names of the clusters that have files below `root`, sorted; running or not."""
    root = default_root() if root is None else Path(root)
    try:
        folders = list(root.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(f.name for f in folders if _NAME.fullmatch(f.name) and (f / "security").is_dir())


def write_private(path: Path, data: str | bytes) -> None:
    """Replace `path` by a file of mode 0600 that holds `data`.

    A reader sees the old file or the whole new one, and nobody but the owner
    can read it at any time. Where writing fails the old file stays; one that is
    as it should be gets a new date only, for which a full disk has room.
    """
    raw = data.encode() if isinstance(data, str) else data
    if _holds(path, raw):
        os.utime(path)
        return
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(raw)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink()
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None
    except BaseException:
        temporary.unlink()
        raise


def _holds(path: Path, raw: bytes) -> bool:
    """Whether `path` is a private file with just these bytes."""
    try:
        status = path.lstat()
        private = stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o600
        return private and status.st_uid == os.getuid() and path.read_bytes() == raw
    except OSError:
        return False
