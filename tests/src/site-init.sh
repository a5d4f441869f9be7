#!/bin/bash
# The first process of a site, in mount, UTS, IPC and process namespaces of its own. When it dies, all of the site dies.
# Arguments: the site's directory, its name. It puts private directories over the machine's and starts the daemons.
set -eu
dir=$1 name=$2
mount --make-rprivate /
mount -t proc proc /proc
mount -t sysfs sysfs /sys # shows the network devices of this namespace
hostname "$name"

# /etc: the machine's, entry by entry, except what the site has of its own.
mount --bind /etc "$dir/machine-etc"
for entry in /etc/* /etc/.[!.]*; do
    own=$dir/etc/${entry##*/}
    [ -e "$own" ] || [ -L "$own" ] || ln -s "$dir/machine-etc/${entry##*/}" "$own"
done
mount --bind "$dir/etc" /etc
mount --bind "$dir/run" /run
for path in lib cache log; do mount --bind "$dir/var/$path/libvirt" "/var/$path/libvirt"; done

# /dev: without kvm where it is of no use, so that libvirt does not ask QEMU about it again and again.
mount -t tmpfs -o mode=755 tmpfs "$dir/dev"
mkdir "$dir/dev/net" "$dir/dev/shm" "$dir/dev/pts" "$dir/dev/mapper"
devices="null zero full random urandom tty net/tun vhost-vsock"
[ ! -e "$dir/use-kvm" ] || devices="$devices kvm vhost-net"
for device in $devices; do
    [ -e "/dev/$device" ] || continue
    : >"$dir/dev/$device"
    mount --bind "/dev/$device" "$dir/dev/$device"
done
mount -t tmpfs tmpfs "$dir/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$dir/dev/pts"
ln -s pts/ptmx "$dir/dev/ptmx"
ln -s /proc/self/fd "$dir/dev/fd"
ln -s /proc/self/fd/0 "$dir/dev/stdin"
ln -s /proc/self/fd/1 "$dir/dev/stdout"
ln -s /proc/self/fd/2 "$dir/dev/stderr"
mount --move "$dir/dev" /dev

cd /
# QEMU's table of open files begins as large as libvirtd's, which on a host of some VMs is hundreds. From one of 64, QEMU
# grows it while it starts the VM's devices, and the VM's CPUs wait 14 ms for a grace period of RCU (expand_files, Linux 6.18).
exec 255</dev/null
dbus-daemon --config-file=/etc/lab-bus.conf --nofork --nopidfile &
libvirtd --listen --config /etc/libvirt/libvirtd.conf --pid-file /run/libvirtd.pid &
until [ -S /run/dbus/system_bus_socket ] && [ -S /run/libvirt/libvirt-sock ]; do sleep 0.02; done
libvirt-dbus --system &
# QEMU and other orphans come to this shell, which reaps them while it waits.
while :; do wait -n || sleep 0.2; done
