//! The managed VMs that run on this host, as libvirt's hooks described them, and the addresses given to them. Kept under
//! /run/lsm, since a service that starts later hears of no VM that runs already.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use lsm_protocol::{Mac, Uuid, VnicPlace};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    config::{Config, Subnet},
    domain::Domain,
    guest_line::Address,
    keys::KeyOf,
    libvirt::Ending,
};

/// A managed VM on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    pub name: String,
    pub uuid: Uuid,
    pub vnics: Vec<Vnic>,
    /// The vNIC that carries the traffic.
    pub active: Mac,
    cid: Option<u32>,
    channel: Option<PathBuf>,
}

/// One of its managed vNICs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vnic {
    pub mac: Mac,
    /// The LAN whose address it carries; `None` for a spare.
    pub lan: Option<String>,
    pub tap: Option<String>,
    /// The bridge that libvirt plugged it into.
    pub bridge: Option<String>,
}

impl Vm {
    /// Reads a running domain's description. The active vNIC is the one that is plugged directly into its LAN.
    pub fn of(domain: &Domain, config: &Config) -> Option<Vm> {
        let vnics: Vec<Vnic> = domain
            .vnics
            .iter()
            .map(|vnic| {
                let card = domain.interface(vnic.mac);
                Vnic {
                    mac: vnic.mac,
                    lan: vnic.lan.clone(),
                    tap: card.and_then(|c| c.tap.clone()),
                    bridge: card.and_then(|c| c.bridge.clone()),
                }
            })
            .collect();
        let direct = |vnic: &&Vnic| {
            let lan = vnic.lan.as_ref().and_then(|name| config.lans.get(name));
            lan.is_some_and(|lan| vnic.bridge.as_ref() == Some(&lan.bridge))
        };
        let active = vnics.iter().find(direct).or_else(|| vnics.iter().find(|v| v.lan.is_some()))?.mac;
        Some(Vm {
            name: domain.name.clone(),
            uuid: parse_uuid(&domain.uuid)?,
            vnics,
            active,
            cid: domain.vsock_cid,
            channel: domain.guest_channel.clone(),
        })
    }

    pub fn vnic(&self, mac: Mac) -> Option<&Vnic> {
        self.vnics.iter().find(|vnic| vnic.mac == mac)
    }

    pub fn macs(&self) -> Vec<Mac> {
        self.vnics.iter().map(|vnic| vnic.mac).collect()
    }

    pub fn places(&self) -> Vec<VnicPlace> {
        self.vnics.iter().map(|vnic| VnicPlace { mac: vnic.mac, lan: vnic.lan.clone() }).collect()
    }

    /// `keys` is the directory of the VMs' keys.
    pub fn address(&self, keys: &Path) -> Address {
        Address { cid: self.cid, channel: self.channel.clone(), key: KeyOf::new(keys, self.uuid) }
    }
}

/// All of them, and the addresses in use.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Inventory {
    vms: BTreeMap<String, Vm>,
    /// Given out of this host's pools: address, VM.
    leases: BTreeMap<IpAddr, Uuid>,
    /// Not here, and not done with their addresses: saved, or moved to another host of the same LAN.
    #[serde(default)]
    away: BTreeSet<Uuid>,
    #[serde(skip)]
    file: PathBuf,
}

impl Inventory {
    pub fn open(directory: &Path) -> io::Result<Inventory> {
        let file = directory.join("inventory.json");
        let mut inventory: Inventory = read_json(&file)?.unwrap_or_default();
        inventory.file = file;
        Ok(inventory)
    }

    pub fn put(&mut self, vm: Vm) {
        self.away.remove(&vm.uuid);
        self.vms.insert(vm.uuid.to_string(), vm);
        self.save();
    }

    /// It runs here no more. Whether its addresses are free, only [`Inventory::ended`] knows.
    pub fn remove(&mut self, uuid: Uuid) {
        self.vms.remove(&uuid.to_string());
        self.save();
    }

    /// Why a VM that is in no migration of ours runs here no more: its addresses are free, unless it goes on with them.
    pub fn ended(&mut self, uuid: Uuid, ending: Ending) {
        match ending {
            Ending::Saved | Ending::Migrated if self.leases.values().any(|holder| *holder == uuid) => {
                self.away.insert(uuid);
            }
            Ending::Saved | Ending::Migrated => {}
            Ending::Failed | Ending::Other => self.leases.retain(|_, holder| *holder != uuid),
        }
        self.save();
    }

    pub fn get(&self, uuid: Uuid) -> Option<&Vm> {
        self.vms.get(&uuid.to_string())
    }

    pub fn by_name(&self, name: &str) -> Option<&Vm> {
        self.vms.values().find(|vm| vm.name == name)
    }

    pub fn all(&self) -> impl Iterator<Item = &Vm> {
        self.vms.values()
    }

    /// The VM has settled: `old` is a spare now.
    pub fn settle(&mut self, uuid: Uuid, old: Mac) {
        if let Some(vm) = self.vms.get_mut(&uuid.to_string())
            && let Some(vnic) = vm.vnics.iter_mut().find(|vnic| vnic.mac == old)
        {
            vnic.lan = None;
            self.save();
        }
    }

    /// A vNIC has been plugged into another bridge than libvirt's.
    pub fn replugged(&mut self, uuid: Uuid, mac: Mac, bridge: &str) {
        if let Some(vm) = self.vms.get_mut(&uuid.to_string())
            && let Some(vnic) = vm.vnics.iter_mut().find(|vnic| vnic.mac == mac)
        {
            vnic.bridge = Some(bridge.to_owned());
            self.save();
        }
    }

    /// An address of each subnet for this VM: the one it has, or the first free one of the pool. All, or none is given.
    ///
    /// # Errors
    /// The first subnet whose pool is exhausted.
    pub fn lease<'a>(&mut self, subnets: &'a [Subnet], vm: Uuid) -> Result<Vec<IpAddr>, &'a Subnet> {
        let held = |address: &IpAddr| self.leases.get(address);
        let address = |subnet: &'a Subnet| {
            let pool = || subnet.pool.addresses();
            pool().find(|a| held(a) == Some(&vm)).or_else(|| pool().find(|a| held(a).is_none())).ok_or(subnet)
        };
        let addresses = subnets.iter().map(address).collect::<Result<Vec<_>, _>>()?;
        self.leases.extend(addresses.iter().map(|address| (*address, vm)));
        self.save();
        Ok(addresses)
    }

    pub fn release(&mut self, vm: Uuid) {
        self.leases.retain(|_, holder| *holder != vm);
        self.save();
    }

    /// Addresses of VMs that neither are here nor come nor go on elsewhere: whoever gave them out died before they could.
    pub fn release_all_but(&mut self, moving: &BTreeSet<Uuid>) {
        let here: BTreeSet<Uuid> = self.vms.values().map(|vm| vm.uuid).collect();
        self.leases.retain(|_, holder| [&here, moving, &self.away].iter().any(|vms| vms.contains(holder)));
        self.save();
    }

    fn save(&self) {
        if let Err(error) = write_json(&self.file, self) {
            tracing::warn!(%error, file = %self.file.display(), "cannot save the inventory; a restart now would forget VMs");
        }
    }
}

/// Reads a state file; `None` when there is none. One that cannot be understood is set aside.
pub fn read_json<T: DeserializeOwned>(file: &Path) -> io::Result<Option<T>> {
    let bytes = match fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(Some(value)),
        Err(error) => {
            tracing::warn!(%error, file = %file.display(), "cannot understand this state file; it is set aside");
            fs::rename(file, file.with_extension("json.unreadable"))?;
            Ok(None)
        }
    }
}

/// Writes a state file whole or not at all.
pub fn write_json(file: &Path, value: &impl Serialize) -> io::Result<()> {
    let fresh = file.with_extension("json.new");
    fs::write(&fresh, serde_json::to_vec(value)?)?;
    fs::rename(fresh, file)
}

pub fn parse_uuid(text: &str) -> Option<Uuid> {
    let digits: Vec<u8> = text.bytes().filter(|b| *b != b'-').collect();
    let mut uuid = [0; 16];
    if digits.len() != 32 {
        return None;
    }
    for (byte, pair) in uuid.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(Uuid(uuid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn an_address_is_given_once_until_its_vm_is_gone_for_good() {
        let directory = std::env::temp_dir().join(format!("lsm-inventory-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let file = directory.join("host.toml");
        let lan = "[lan.a]\nbridge = \"br0\"\nprefix = \"10.1.0.0/24\"\ngateway = \"10.1.0.1\"\npool = \"10.1.0.8-10.1.0.9\"\n";
        fs::write(&file, lan).unwrap();
        let subnets = Config::load(&file).unwrap().lans["a"].subnets.clone();
        let vm = |number| Uuid([number; 16]);
        let given = |inventory: &mut Inventory, number| {
            inventory.lease(&subnets, vm(number)).ok().map(|all| all[0].to_string())
        };
        let mut inventory = Inventory::open(&directory).unwrap();
        let [first, second] = [1, 2].map(|number| given(&mut inventory, number).unwrap());
        assert_ne!(first, second);
        assert_eq!(given(&mut inventory, 1).as_ref(), Some(&first), "again the same");
        assert_eq!(given(&mut inventory, 3), None, "exhausted");
        inventory.remove(vm(1));
        let mut inventory = Inventory::open(&directory).unwrap();
        assert_eq!(given(&mut inventory, 3), None, "its move goes on, and the service was started again");
        for ending in [Ending::Saved, Ending::Migrated] {
            inventory.ended(vm(2), ending);
            inventory.release_all_but(&BTreeSet::from([vm(1)]));
            assert_eq!(given(&mut inventory, 3), None, "{ending:?}: it comes back with its address");
        }
        inventory.ended(vm(2), Ending::Other);
        assert_eq!(given(&mut inventory, 3), Some(second), "shut down");
        inventory.release(vm(1));
        assert_eq!(given(&mut inventory, 2), Some(first), "its move is over");
        fs::remove_dir_all(&directory).unwrap();
    }
}
