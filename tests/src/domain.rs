//! The lab's VMs as libvirt's XML.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{
    cores::Cores,
    distribution, exec,
    family::Family,
    image::Image,
    topology::{SPARE_BRIDGE, SitePlan},
    vsock_device,
};

/// The virtio-serial port that `lsm-guest` and `lsm-hook` speak over.
pub const AGENT_PORT: &str = "org.lsm.guest.0";

/// How hosts reach the VM's agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// The virtio-serial port [`AGENT_PORT`].
    Serial,
    /// vsock by the kernel's vhost-vsock and nothing else; libvirt chooses the CID. See [`kernel_vsock`].
    Vsock,
    /// The port, and vsock by [`crate::vsock_device`]. The VM cannot migrate.
    VsockDevice,
}

/// Whether this machine's kernel has vhost-vsock. Nobody can install that, so it is never expected.
#[must_use]
pub fn kernel_vsock() -> bool {
    std::path::Path::new("/dev/vhost-vsock").exists()
}

/// The id of the device that [`Channel::VsockDevice`] gives, for QEMU's `device_del`.
pub const VSOCK_DEVICE: &str = "labvsock";
/// The id of the port it is plugged into: QEMU takes it out while the VM runs only from such a one.
pub const VSOCK_SLOT: &str = "labslot";

/// One VM: vNIC A in a site's LAN, vNIC B spare, no disk but for a distribution's.
#[derive(Debug, Clone)]
pub struct Domain {
    /// Its name.
    pub name: String,
    /// What it boots.
    pub image: Image,
    /// vNIC A's address (prefix length 24).
    pub address: Ipv4Addr,
    /// Its gateway.
    pub gateway: Ipv4Addr,
    /// vNIC A's address of IPv6 (prefix length 64).
    pub address6: Ipv6Addr,
    /// Its gateway.
    pub gateway6: Ipv6Addr,
    /// Which of them it has.
    pub family: Family,
    /// The LAN that vNIC A starts in.
    pub lan: String,
    /// The bridge of that LAN.
    pub bridge: String,
    /// MAC of vNIC A (`eth0`).
    pub mac_a: String,
    /// MAC of vNIC B (`eth1`), which is down and has no address.
    pub mac_b: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Cores that are for them alone.
    pub cores: Option<Cores>,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// MTU of both vNICs inside the VM.
    pub mtu: u32,
    /// KVM instead of emulation; see [`crate::accelerator::kvm_works`], and [`crate::site::SiteOptions::kvm`].
    pub kvm: bool,
    /// LSM's element in the metadata. `None` is a VM that LSM has nothing to do with.
    pub metadata: Option<String>,
    /// As somebody made it who knows nothing of LSM: vNIC A alone, and no channel to an agent. Without metadata.
    pub plain: bool,
    /// The `<cpu>` element, where the default is not wanted.
    pub cpu: Option<String>,
    /// How its agent is reached.
    pub channel: Channel,
    /// More on the kernel's command line.
    pub command_line: String,
    /// More devices, as XML.
    pub devices: String,
}

impl Domain {
    /// A VM with 1 CPU and 256 MiB at address 10 of the site's LAN, known to LSM.
    #[must_use]
    pub fn new(name: &str, image: Image, site: &SitePlan) -> Domain {
        let mac = |card: u8| format!("52:54:00:aa:{:02x}:{card:02x}", site.number);
        let (mac_a, mac_b) = (mac(1), mac(2));
        let metadata = format!(
            r#"<lsm:vm xmlns:lsm="urn:lsm:1"><lsm:vnic mac="{mac_a}" lan="{}"/><lsm:vnic mac="{mac_b}"/></lsm:vm>"#,
            site.name
        );
        Domain {
            name: name.into(),
            image,
            address: site.address(10),
            gateway: site.gateway,
            address6: site.address6(10),
            gateway6: site.gateway6(),
            family: Family::V4,
            lan: site.name.clone(),
            bridge: site.bridge.clone(),
            mac_a,
            mac_b,
            vcpus: 1,
            cores: None,
            memory_mib: 256,
            mtu: 1500,
            kvm: false,
            metadata: Some(metadata),
            plain: false,
            cpu: None,
            channel: Channel::Serial,
            command_line: String::new(),
            devices: String::new(),
        }
    }

    /// The same VM once more beside it, with cards and an address of its own.
    #[must_use]
    pub fn another(&self, number: u8, site: &SitePlan) -> Domain {
        let mac = |card: u8| format!("52:54:00:ab:{number:02x}:{card:02x}");
        let (mac_a, mac_b) = (mac(1), mac(2));
        let named = |text: &str| text.replace(&self.mac_a, &mac_a).replace(&self.mac_b, &mac_b);
        Domain {
            name: format!("{}-{number}", self.name),
            address: site.address(10 + number),
            address6: site.address6(10 + number),
            metadata: self.metadata.as_deref().map(named),
            mac_a: mac_a.clone(),
            mac_b: mac_b.clone(),
            ..self.clone()
        }
    }

    /// The addresses of vNIC A, IPv4 first.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.family.of(self.address, self.address6)
    }

    /// Where QEMU writes the VM's console, inside the site; see [`crate::site::Site::inside`].
    #[must_use]
    pub fn console(&self) -> String {
        format!("/var/log/libvirt/qemu/{}-console.log", self.name)
    }

    /// The XML.
    #[must_use]
    pub fn xml(&self) -> String {
        let Domain {
            name,
            address,
            gateway,
            address6,
            gateway6,
            bridge,
            mac_a,
            mac_b,
            vcpus,
            memory_mib,
            mtu,
            devices,
            ..
        } = self;
        // Under emulation the plainest CPU is the quickest: zeroing memory took 0.01 s with it and 0.15 s with "maximum".
        let (kind, cpu) = if self.kvm {
            ("kvm", "<cpu mode='host-model'/>")
        } else {
            ("qemu", "<cpu mode='custom' match='exact'><model fallback='forbid'>qemu64</model></cpu>")
        };
        let cpu = self.cpu.as_deref().unwrap_or(cpu);
        let cores = self.cores.as_ref().map(Cores::xml).unwrap_or_default();
        let (kernel, initramfs) = (self.image.kernel.display(), self.image.initramfs.display());
        let metadata = self.metadata.as_deref().filter(|_| !self.plain).unwrap_or_default();
        let card = |mac: &str, bridge: &str| {
            format!(
                "<interface type='bridge'><mac address='{mac}'/><source bridge='{bridge}'/><model type='virtio'/>\
                 <rom enabled='no'/></interface>"
            )
        };
        let mut cards = card(mac_a, bridge);
        if !self.plain {
            cards.push_str(&card(mac_b, SPARE_BRIDGE));
        }
        let (console, lab_port) = (self.console(), exec::PORT);
        let mut more = self.command_line.clone();
        if self.family.v4() {
            more.push_str(&format!(" lab.address={address}/24 lab.gateway={gateway}"));
        }
        if self.family.v6() {
            more.push_str(&format!(" lab.address6={address6}/64 lab.gateway6={gateway6}"));
        }
        let mut disk = String::new();
        if let Some(path) = &self.image.disk {
            // As Debian has it. A later word on the same line counts.
            more.push_str(&format!(" {} lsm=apparmor", distribution::WORD));
            // Never written to, so that both hosts may have it open.
            disk = format!(
                "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{}'/>\
                 <target dev='vda' bus='virtio'/><readonly/></disk>",
                path.display()
            );
        }
        let port = format!("<channel type='unix'><target type='virtio' name='{AGENT_PORT}'/></channel>");
        let (backing, channel, arguments) = match self.channel {
            _ if self.plain => ("", String::new(), String::new()),
            Channel::Serial => ("", port, String::new()),
            Channel::Vsock => ("", "<vsock model='virtio'><cid auto='yes'/></vsock>".into(), String::new()),
            Channel::VsockDevice => (SHARED_MEMORY, port, vsock_arguments()),
        };
        // Under emulation each of these costs without protecting anything, most of all in the first milliseconds after
        // arrival, when all code is translated anew; without randomised addresses two processes share what is.
        format!(
            r#"<domain type='{kind}' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <metadata>{metadata}</metadata>
  <memory unit='MiB'>{memory_mib}</memory>
  {backing}<vcpu>{vcpus}</vcpu>{cores}
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initramfs}</initrd>
    <cmdline>console=ttyS0 quiet panic=-1 net.ifnames=0 mitigations=off nowatchdog no_timer_check norandmaps nokaslr preempt=full lsm=none psi=0 random.trust_cpu=on lab.name={name} lab.mtu={mtu} {more}</cmdline>
  </os>
  <features><acpi/></features>
  {cpu}
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>destroy</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    <controller type='virtio-serial' index='0'/>
    {cards}
    {channel}
    <channel type='unix'><target type='virtio' name='{lab_port}'/></channel>
    <serial type='file'><source path='{console}' append='on'/></serial>
    <memballoon model='none'/>
    {disk}
    {devices}
  </devices>
  {arguments}
</domain>
"#
        )
    }
}

/// The device is another process, which reads and writes the VM's memory.
const SHARED_MEMORY: &str = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>\n  ";

/// libvirt has no XML for a vhost-user vsock device.
fn vsock_arguments() -> String {
    let socket = vsock_device::SOCKET;
    let arguments = [
        "-chardev".to_owned(),
        format!("socket,id={VSOCK_DEVICE}char,path={socket}"),
        "-device".into(),
        // Behind the slots that libvirt gives to its own devices.
        format!("pcie-root-port,id={VSOCK_SLOT},addr=0x18,chassis=90"),
        "-device".into(),
        format!("vhost-user-vsock-pci,id={VSOCK_DEVICE},bus={VSOCK_SLOT},chardev={VSOCK_DEVICE}char"),
    ];
    let arguments = arguments.map(|word| format!("<qemu:arg value='{word}'/>"));
    format!("<qemu:commandline>{}</qemu:commandline>", arguments.concat())
}
