#!/bin/bash
# Runs a script in Debian 12 as if it were a machine's, and forgets all that it did: in-debian.sh DISK PACKAGES SCRIPT
# In mount and process namespaces of its own; nothing is left to clean up.
set -euo pipefail
disk=$1 packages=$2 script=$3
work=$(mktemp -d)
trap 'rmdir "$work"' EXIT
export work disk packages script
unshare --mount --propagation private --pid --fork --kill-child --net bash -euo pipefail -c '
    mount -t tmpfs tmpfs "$work"
    mkdir "$work"/{disk,upper,under,root}
    mount -o loop,ro "$disk" "$work/disk"
    mount -t overlay overlay -o "lowerdir=$work/disk,upperdir=$work/upper,workdir=$work/under" "$work/root"
    root=$work/root
    mount -t proc proc "$root/proc"
    mount -t sysfs -o ro sysfs "$root/sys"
    mount -t tmpfs tmpfs "$root/dev"
    for device in null zero urandom random; do touch "$root/dev/$device"; mount --bind "/dev/$device" "$root/dev/$device"; done
    mount -t tmpfs tmpfs "$root/run"
    mount -t tmpfs tmpfs "$root/mnt"
    cp "$packages"/* "$script" "$root/mnt/"
    ip link set lo up
    # Scriptlets of .rpm run in the root: rpm itself is the machine that tests.
    in_debian() { chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive "$@"; }
    # "!" would be passed over by "set -e".
    must_fail() { ! "$@" || { echo "should have failed: $*" >&2; exit 1; }; }
    rpm_in_debian() { rpm --root "$root" --dbpath /mnt/rpm --nodeps --nodigest --nosignature "$@" 2>&1; }
    all() {
        in_debian find / -xdev -path /proc -prune -o -path /sys -prune -o -path /tmp -prune -o -path /var/log -prune -o \
            -path /var/lib/dpkg -prune -o -printf "%y %m %p %l\n" | sort
    }
    all >"$work/before"
    . "$root/mnt/$(basename "$script")"
    all >"$work/after"
    diff "$work/before" "$work/after" || { echo "left behind, see above" >&2; exit 1; }
'
