# Sourced by in-debian.sh. The machine is none of theirs: the programs run in an emulator of their processor.
dpkg() { in_debian sh -c "dpkg --force-architecture --force-depends $*"; }
dpkg --install '/mnt/*_arm64.deb'
emulated() { in_debian /mnt/aarch64 "$@"; }
emulated /usr/sbin/lsm-guest --version
emulated /usr/sbin/lsm-hook --version
emulated /usr/sbin/lsm-guest check --bake
# A hook call, and a whole file of keys.
emulated /usr/sbin/lsm-hook hook vm prepare begin - <<<'<domain><name>vm</name></domain>'
emulated /usr/sbin/lsm-hook init --peer dallas --pool 10.1.0.200-10.1.0.209
in_debian grep -q '^\[peer."dallas"\]' /etc/lsm/host.toml
dpkg --purge lsm-guest lsm-hook
