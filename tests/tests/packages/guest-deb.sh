# Sourced by in-debian.sh.
install() { in_debian sh -c "dpkg --install /mnt/lsm-guest_*.deb"; }
install
in_debian test -L /etc/systemd/system/multi-user.target.wants/lsm-guest.service
in_debian test -L /etc/systemd/system/sysinit.target.wants/lsm-guest-force.service
in_debian test ! -e /etc/systemd/system/sysinit.target.wants/lsm-client.service
in_debian lsm-guest check --bake
in_debian systemctl --quiet disable lsm-guest
# As image builders do, and a first boot.
in_debian systemctl --quiet preset lsm-guest lsm-guest-force lsm-client
in_debian test ! -e /etc/systemd/system/sysinit.target.wants/lsm-client.service
in_debian lsm-guest check --bake
in_debian systemctl --quiet disable lsm-guest
must_fail in_debian lsm-guest check --bake
in_debian systemctl --quiet enable lsm-guest

# While the agent runs: an upgrade neither ends it nor loses its socket.
in_debian lsm-guest run &
agent=$!
for _ in {1..100}; do in_debian lsm-guest status >/dev/null 2>&1 && break; sleep 0.1; done
in_debian lsm-guest status
echo '# the operator was here' >>"$root/etc/lsm/guest.toml"
install
kill -0 $agent
in_debian lsm-guest status
in_debian grep -q 'the operator was here' /etc/lsm/guest.toml
kill $agent
wait $agent || true

in_debian dpkg --remove lsm-guest
in_debian grep -q 'the operator was here' /etc/lsm/guest.toml
in_debian dpkg --purge lsm-guest
