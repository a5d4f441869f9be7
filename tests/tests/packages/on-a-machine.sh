#!/bin/bash
# Boots Debian 12 in a container, with its own systemd, runs a script in it as root, and prints what that said:
# on-a-machine.sh DISK PACKAGES SCRIPT PKI. In mount namespaces of its own; nothing is left to clean up.
set -euo pipefail
disk=$1 packages=$2 script=$3 pki=$4
work=$(mktemp -d)
trap 'rmdir "$work"' EXIT
export work disk packages script pki
unshare --mount --propagation private bash -euo pipefail -c '
    mount -t tmpfs tmpfs "$work"
    mkdir "$work"/{disk,upper,under,root,lab}
    mount -o loop,ro "$disk" "$work/disk"
    mount -t overlay overlay -o "lowerdir=$work/disk,upperdir=$work/upper,workdir=$work/under" "$work/root"
    cp "$packages"/*.deb "$script" "$work/lab/"
    cp -r "$pki" "$work/lab/pki"
    cat >"$work/lab/run" <<END
exec >/lab/said 2>&1
set -ex
all() {
    find / /run/lsm /run/systemd/network -xdev "(" -path /proc -o -path /sys -o -path /tmp -o -path /var/log -o -path /var/lib/dpkg -o -path /lab \\
        -o -path /var/tmp -o -path /var/lib/systemd -o -path /var/lib/dbus ")" -prune -o -printf "%y %m %p %l\n" 2>/dev/null | sort
}
# Asked 20 times a second until the file goes: how often it gave no answer.
ask_all_the_time() {
    touch /lab/asking; echo 0 >/lab/unanswered; asked=0
    while [ -e /lab/asking ]; do "\$@" >/dev/null 2>/lab/why || { echo 1 >>/lab/unanswered; cat /lab/why; }; asked=\$((asked + 1)); sleep 0.05; done
    echo "asked \$asked times"
}
all >/lab/before
. /lab/$(basename "$script")
systemctl daemon-reload
all >/lab/after
diff /lab/before /lab/after || { echo "left behind, see above"; exit 1; }
echo it is over
END
    # A container, not a VM.
    mkdir -p "$work/root/etc/systemd/system/lsm-guest.service.d"
    printf "[Unit]\nConditionVirtualization=\n[Service]\nStandardError=file:/lab/agent.log\n" >"$work/root/etc/systemd/system/lsm-guest.service.d/lab.conf"
    cat >"$work/root/etc/systemd/system/lab.service" <<END
[Unit]
DefaultDependencies=no
SuccessAction=exit-force
FailureAction=exit-force
[Service]
Type=oneshot
TimeoutStartSec=100
ExecStart=/bin/bash /lab/run
END
    printf "[Unit]\nDefaultDependencies=no\nAllowIsolate=yes\nWants=lab.service\n" >"$work/root/etc/systemd/system/lab.target"
    timeout 120 systemd-nspawn --quiet --register=no --keep-unit --directory="$work/root" --machine=lsm-packages \
        --private-network --bind="$work/lab:/lab" --boot systemd.unit=lab.target >"$work/lab/console" 2>&1 || true
    cat "$work/lab/said" || cat "$work/lab/console"
    tail -n 1 "$work/lab/said" | grep -qx "it is over" || { cat "$work"/lab/*.log; exit 1; }
'
