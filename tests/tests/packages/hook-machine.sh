# Sourced on a machine that runs; see on-a-machine.sh. libvirt is not in this Debian.
install() { dpkg --force-depends --force-confold --install /lab/lsm-hook_*.deb; }
said=$(install)
grep 'libvirtd was not restarted' <<<"$said"
if systemctl is-active lsm-hook.socket || systemctl is-active lsm-hook.service; then exit 1; fi
mkdir -p /etc/pki
cp -r /lab/pki/CA /lab/pki/libvirt /etc/pki/
echo 'name = "here"' >/etc/lsm/host.toml
systemctl enable --now lsm-hook.socket
lsm-hook status
service=$(systemctl show -P MainPID lsm-hook.service)
socket=$(stat -c %i /run/lsm/hook.sock)

# Whoever calls during an upgrade is answered: libvirt's hook, and the other hosts.
ask_all_the_time lsm-hook status &
asking=$!
sleep 0.5
install
sleep 1
rm /lab/asking
wait $asking
[ "$(cat /lab/unanswered)" = 0 ]
[ "$(stat -c %i /run/lsm/hook.sock)" = "$socket" ]
[ "$(systemctl show -P MainPID lsm-hook.service)" != "$service" ]
systemctl is-active lsm-hook.socket

# Not while a VM's connections go through it.
touch /run/lsm/migrations/arrival-1.json
if dpkg --force-depends --remove lsm-hook; then exit 1; fi
systemctl is-active lsm-hook.socket
lsm-hook status
rm /run/lsm/migrations/arrival-1.json

dpkg --force-depends --remove lsm-hook
if systemctl is-active lsm-hook.socket || systemctl is-active lsm-hook.service || pidof lsm-hook; then exit 1; fi
test ! -e /run/lsm
dpkg --force-depends --purge lsm-hook
rm -r /etc/pki
