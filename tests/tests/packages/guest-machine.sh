# Sourced on a machine that runs; see on-a-machine.sh.
dpkg --install /lab/lsm-guest_*.deb
for try in {1..100}; do lsm-guest status >/dev/null 2>&1 && break; sleep 0.1; done
lsm-guest status
test -d /run/systemd/network
systemctl is-enabled lsm-guest lsm-guest-force
first=$(systemctl show -P MainPID lsm-guest)

# An upgrade has the new program run.
dpkg --install /lab/lsm-guest_*.deb
for try in {1..100}; do lsm-guest status >/dev/null 2>&1 && break; sleep 0.1; done
lsm-guest status
second=$(systemctl show -P MainPID lsm-guest)
[ "$first" != "$second" ] && [ "$second" != 0 ]
[ "$(systemctl show -P NRestarts lsm-guest)" = 0 ]

# One that the operator has stopped and disabled stays so.
systemctl disable --now lsm-guest
dpkg --install /lab/lsm-guest_*.deb
if systemctl is-enabled lsm-guest; then exit 1; fi
systemctl enable --now lsm-guest

dpkg --remove lsm-guest
if systemctl is-active lsm-guest || pidof lsm-guest; then exit 1; fi
test ! -e /run/lsm
dpkg --purge lsm-guest
