# Sourced by in-debian.sh. libvirt itself is not in this Debian: what the package needs of it is its directories.
said=$(in_debian sh -c "dpkg --force-depends --install /mnt/lsm-hook_*.deb")
grep -q 'libvirtd was not restarted' <<<"$said"
grep -q 'systemctl restart libvirtd' <<<"$said"
# As image builders do, and a first boot.
in_debian systemctl --quiet preset lsm-hook.socket lsm-hook.service
in_debian test ! -e /etc/systemd/system/sockets.target.wants/lsm-hook.socket
in_debian test ! -e /etc/systemd/system/multi-user.target.wants/lsm-hook.service

# A VM that is none of LSM's, and one whose host has no service, start all the same.
call() { in_debian /etc/libvirt/hooks/qemu.d/lsm vm "$1" begin -; }
[ -z "$(call prepare <<<'<domain><name>vm</name></domain>')" ]
call start <<<"<domain><metadata><vm xmlns='urn:lsm:1'/></metadata></domain>"
call prepare <<<"<domain><metadata><vm xmlns='urn:lsm:1'/></metadata></domain>"
must_fail call migrate <<<"<domain><metadata><vm xmlns='urn:lsm:1'/></metadata></domain>"

# An upgrade keeps what the operator enabled and wrote, and says nothing any more.
in_debian systemctl --quiet enable lsm-hook.socket
in_debian lsm-hook init --peer dallas --pool 10.1.0.200-10.1.0.209
in_debian grep -q '^\[peer."dallas"\]' /etc/lsm/host.toml
must_fail in_debian lsm-hook init
said=$(in_debian sh -c "dpkg --force-depends --force-confold --install /mnt/lsm-hook_*.deb")
must_fail grep -q 'does nothing yet' <<<"$said"
in_debian test -e /etc/systemd/system/sockets.target.wants/lsm-hook.socket
in_debian grep -q '^\[peer."dallas"\]' /etc/lsm/host.toml

# What connections go through is not removed with the program.
in_debian mkdir -p /run/lsm/migrations
in_debian touch /run/lsm/migrations/arrival-1.json
must_fail in_debian dpkg --force-depends --purge lsm-hook
in_debian rm /run/lsm/migrations/arrival-1.json
in_debian dpkg --force-depends --purge lsm-hook
