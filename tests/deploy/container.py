"""Runs a command as a container of Kubernetes would: a read-only root, any user id in group 0, a network of its own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from export.gate_images import PHOTOS

ROOT = Path(__file__).resolve().parents[2]
TOPFIVE = Path(sys.executable).with_name("topfive")
UID = 1_000_670_000  # as OpenShift gives
_LIMIT_S = 120

# Mounts are private to the command. What the command needs of /root and /tmp is kept, read-only.
_SCRIPT = r"""
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /mnt
i=0
for kept in $KEPT; do i=$((i + 1)); mkdir /mnt/kept$i; mount --bind "$kept" /mnt/kept$i; done
for mounted in $MOUNTS; do
  mkdir -p "${mounted#*=}"; mount --bind "${mounted%%=*}" "${mounted#*=}"; mount -o remount,bind,ro "${mounted#*=}"
done
mount -t tmpfs -o mode=755 tmpfs /root
mount -t tmpfs -o mode=1777 tmpfs /tmp
i=0
for kept in $KEPT; do
  i=$((i + 1)); mkdir -p "$kept"; mount --move /mnt/kept$i "$kept"; mount -o remount,bind,ro "$kept"
done
mkdir -m 1777 /mnt/cache
mount --bind /mnt/cache /mnt/cache
mount --bind / /
mount -o remount,bind,ro /
mount -o remount,ro /root
mount -o remount,ro /mnt
mount -o remount,bind,rw /mnt/cache
cd /tmp
"$PYTHON" -c "import fcntl, socket, struct
fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sh14x', b'lo', 0x41))"
exec setpriv --reuid "$USER_ID" --regid 0 --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all sh -ec '
if touch /root/written 2>/dev/null || touch /mnt/written 2>/dev/null; then echo "the root can be written"; exit 9; fi
"$@" & server=$!
trap "kill -KILL $server 2>/dev/null || true" EXIT
until "$PYTHON" -m service.server.health_probe "$URL/readyz" >/dev/null 2>&1; do kill -0 $server; sleep 0.1; done
"$TOPFIVE" predict --server "$URL" --json "$PHOTO"
for path in $PATHS; do "$PYTHON" -c "import sys, urllib.request as u; u.urlopen(sys.argv[1])" "$URL$path"; done
kill -TERM $server
wait $server
' sh "$@"
"""


def answer_of(
    arguments: Sequence[str], env: Mapping[str, str], mounts: Mapping[Path, str], port: int, paths: Sequence[str] = ()
) -> tuple[str, str]:
    """What `topfive predict` prints of the server that `topfive ARGUMENTS` starts, and what the server logs.

    The server must become ready, answer `paths` with 200, and end with status 0 at SIGTERM. `mounts` are folders,
    read-only, and where the container has them.
    """
    if os.geteuid() != 0 or shutil.which("setpriv") is None or shutil.which("unshare") is None:
        pytest.skip("needs root, setpriv and unshare")
    namespaces = ["unshare", "--mount", "--net", "sh"]
    if subprocess.run([*namespaces, "-c", "mount --make-rprivate /"], capture_output=True, check=False).returncode:
        pytest.skip("needs a machine that allows mounts in a namespace")
    needed = (Path(sys.base_prefix), Path(sys.prefix), ROOT)
    kept = {str(path) for path in needed if path.is_relative_to("/root") or path.is_relative_to("/tmp")}
    given = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": "/tmp",
        "TOPFIVE_CACHE": "/mnt/cache",
        "TOPFIVE_HOST": "0.0.0.0",
        "TOPFIVE_PRE_STOP_S": "0",
        **env,
        "KEPT": " ".join(sorted(kept)),
        "MOUNTS": " ".join(f"{source}={target}" for source, target in mounts.items()),
        "PYTHON": sys.executable,
        "TOPFIVE": str(TOPFIVE),
        "USER_ID": str(UID),
        "URL": f"http://127.0.0.1:{port}",
        "PATHS": " ".join(paths),
        "PHOTO": str(PHOTOS / "zebra.jpeg"),
    }
    command = [*namespaces, "-c", _SCRIPT, "sh", str(TOPFIVE), *arguments]
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout, done.stderr
