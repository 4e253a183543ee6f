"""Measure the time to the first event on a minimal Debian: `make newcomer`, as root.

A minimal Debian is created in a directory once. Each measurement runs in a copy of it, in a mount namespace with its
own root. Packages, caches and files of this machine are not visible there, except /sys, /dev, and the certificates and
package sources. The checkout is cloned from this one.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.testbed.components import cache_directory, debootstrap
from tests.testbed.install import install

ROOT = Path(__file__).parents[2]
PACKAGES = "git make python3 ca-certificates"
SETUPS = {"": "", "--nats": "", "--kafka": "openjdk-17-jre-headless maven"}
"""Additional packages by the arguments of `make run`."""

# Files of this machine that are needed to download packages.
_FILES = (
    "/etc/resolv.conf",
    "/etc/apt/apt.conf.d",
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/ssl/certs/java/cacerts",
)
_HOST_SCRIPT = """\
mkdir upper work merged
mount -t overlay overlay -o lowerdir={debian},upperdir=upper,workdir=work merged
cd merged
mount -t proc proc proc; mount --rbind /sys sys; mount --rbind /dev dev
mount -t tmpfs tmpfs tmp; mount -t tmpfs tmpfs run
mkdir old source host; mount --bind {source} source
for file in {files}; do if [ -e $file ]; then cp -r $file host/; fi; done
cp host/resolv.conf etc/resolv.conf; if [ -e host/apt.conf.d ]; then cp host/apt.conf.d/* etc/apt/apt.conf.d/; fi
pivot_root . old; cd /; umount -l old
exec env -i bash -c {chroot_script}
"""
_CHROOT_SCRIPT = """\
export HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive GIT_CONFIG_COUNT=1
export GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'
if [ -e /host/ca-certificates.crt ]; then export PIP_CERT=/host/ca-certificates.crt; fi
if [ -e /host/cacerts ]; then export MAVEN_OPTS=-Djavax.net.ssl.trustStore=/host/cacerts; fi
cd /root
apt-get update -qq >/tmp/log 2>&1
apt-get install -qy --no-install-recommends {packages} >>/tmp/log 2>&1 || cat /tmp/log >&2
echo packages
git clone --quiet /source whalebridge
cd whalebridge
for time in "first event" "again"; do
    echo checkout
    make run ARGS="{arguments} --rounds 1" 2>/tmp/log | (read -r line && echo $time && cat >/dev/null) ||
        cat /tmp/log >&2
done
"""


def main() -> int:
    """Measure `make run` with all arguments in `SETUPS`, and print a line for each."""
    if os.geteuid() != 0:
        print("newcomer: root required; run: sudo make newcomer", file=sys.stderr)
        return 1
    install(("debootstrap",))
    with tempfile.TemporaryDirectory(dir=cache_directory(), prefix="newcomer-") as directory:
        debian, source = Path(directory, "debian"), Path(directory, "source.git")
        command, environment = debootstrap("bookworm", debian)
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
        subprocess.run(["git", "clone", "--quiet", "--bare", str(ROOT), str(source)], check=True)
        for arguments, packages in SETUPS.items():
            with tempfile.TemporaryDirectory(dir=directory) as copy:
                times = measure(Path(copy), debian, source, arguments, f"{PACKAGES} {packages}")
            durations = ", ".join(f"{step} {seconds:.0f} s" for step, seconds in times.items())
            print(f"make run{f' {arguments}' if arguments else ''}: {durations}", flush=True)
    return 0


def measure(directory: Path, debian: Path, source: Path, arguments: str, packages: str) -> dict[str, float]:
    """Return the seconds by step: packages, checkout, and from `make run` to the first event, in two runs."""
    chroot_script = shlex.quote(_CHROOT_SCRIPT.format(arguments=arguments, packages=packages))
    script = _HOST_SCRIPT.format(debian=debian, source=source, files=" ".join(_FILES), chroot_script=chroot_script)
    command = ["unshare", "--mount", "--propagation", "private", "bash", "-euc", script]
    times: dict[str, float] = {}
    last = time.monotonic()
    with subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            now = time.monotonic()
            times.setdefault(line.strip(), now - last)
            last = now
    return times


if __name__ == "__main__":
    sys.exit(main())
