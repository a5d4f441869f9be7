//! cloud-init's network part, as images for clouds have it: it writes a profile for NetworkManager of what a data source
//! says, before NetworkManager starts. The data source is a directory in the VM. The rest of cloud-init is switched off.

/// Beside the part that runs before the network is up.
pub(super) const MASKED: [&str; 4] =
    ["cloud-init.service", "cloud-config.service", "cloud-final.service", "cloud-init-hotplugd.socket"];
/// Decides at each boot whether it runs; `tests/install` has it switched off.
pub(super) const GENERATOR: &str = "/systemd/system-generators/cloud-init-generator";

/// The package's opt-out.
pub const OPT_OUT: (&str, &str) =
    ("/etc/cloud/cloud.cfg.d/90-lsm.cfg", include_str!("../../../packaging/guest/cloud-init.cfg"));
/// Where its data source says which cards have which addresses.
pub const NETWORK: &str = "/var/lib/cloud/seed/nocloud/network-config";
/// The first card alone: of the spare nobody has told the cloud.
const FIRST_CARD: &str = "version: 2\nethernets:\n  eth0: {dhcp4: true, dhcp6: true}\n";
/// What a cloud says that knows of all the VM's cards.
pub const ALL_CARDS: &str =
    "version: 2\nethernets:\n  eth0: {dhcp4: true, dhcp6: true}\n  eth1: {dhcp4: true, dhcp6: true}\n";

/// Asked at every boot, as the data sources of some clouds are by themselves (Azure's, Scaleway's, and Amazon's for VMs
/// with several cards).
const SETTINGS: &str = "datasource_list: [NoCloud]\nupdates: {network: {when: [boot]}}\n";

/// What it reads, its opt-out included.
pub(super) const FILES: [(&str, &str); 5] = [
    ("/etc/cloud/cloud.cfg.d/10-lab.cfg", SETTINGS),
    OPT_OUT,
    ("/var/lib/cloud/seed/nocloud/meta-data", "instance-id: lab\n"),
    ("/var/lib/cloud/seed/nocloud/user-data", ""),
    (NETWORK, FIRST_CARD),
];
