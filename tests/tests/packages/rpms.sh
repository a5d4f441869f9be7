# Sourced by in-debian.sh. Scriptlets find no systemd that runs, as in an image's build.
for package in lsm-guest lsm-hook; do
    rpm_in_debian --install "$root/mnt/$package"-[0-9]*.rpm
    in_debian test -x "/usr/sbin/$package"
    rpm_in_debian --upgrade --replacepkgs "$root/mnt/$package"-[0-9]*.rpm
    in_debian test -x "/usr/sbin/$package"
done
in_debian lsm-guest check --bake
in_debian test -L /etc/libvirt/hooks/qemu.d/lsm
rpm_in_debian --erase lsm-guest lsm-hook
# Directories of other packages (filesystem, libvirt, dbus), which are not installed as .rpm here, or have more in them.
for directory in /etc/libvirt/{hooks/qemu.d,hooks,} /etc/apparmor.d /usr/share/{bash-completion/completions,dbus-1/interfaces} \
    /usr/share/fish/{vendor_completions.d,} /usr/share/man/man{5,8} /usr/share/zsh/site-functions; do
    in_debian rmdir --ignore-fail-on-non-empty "$directory"
done
