# Sourced on a host that has just booted, with $name, $number, $wan, $second, $peer and $peer_wan: its network, the package,
# and what README's "Set up two hosts" has.
set -e
ip link set eth0 name wan
ip link set eth1 name second
ip link set eth2 name lan
for card in wan second lan; do ip link set "$card" up; done
ip addr add "$wan/24" dev wan
ip addr add "$second/24" dev second
ip route add default via "${wan%.*}.1"
ip link add "br-$name" type bridge forward_delay 0 mcast_snooping 0
ip link set "br-$name" up
ip link set lan master "br-$name"
# The copy takes long enough to be looked at.
for card in wan second; do tc qdisc add dev "$card" root tbf rate 100mbit burst 128k latency 50ms; done
hostname "$name"
printf '127.0.0.1 localhost\n%s %s\n%s %s\n' "$wan" "$name" "$peer_wan" "$peer" >/etc/hosts
# libvirt-dbus is no root, and asks for leave.
rm /etc/systemd/system/polkit.service
systemctl daemon-reload

dpkg --install /lab/lsm-hook.deb
# As "aa-enforce" would.
sed -i 's/(complain,/(/' /etc/apparmor.d/usr.sbin.lsm-hook
apparmor_parser --replace --skip-cache /etc/apparmor.d/usr.sbin.lsm-hook
mkdir -p /etc/pki
cp -r "/lab/pki/$name/." /etc/pki/
cat >/etc/lsm/host.toml <<END
name = "$name"
[tunnel]
address = "$wan"
encrypt = "wireguard"
[lan.$name]
bridge = "br-$name"
prefix = "10.$number.0.0/24"
gateway = "10.$number.0.1"
pool = "10.$number.0.100-10.$number.0.199"
[peer.$peer]
address = "$peer_wan:16519"
[stream]
paths = ["$wan", "$second"]
END
systemctl stop libvirtd
systemctl enable --now libvirtd-tls.socket
systemctl enable --now lsm-hook.socket
systemctl start libvirtd

qemu-img create -f qcow2 /var/lib/libvirt/images/disk.qcow2 64M
# For post-copy.
echo 1 >/proc/sys/vm/unprivileged_userfaultfd
