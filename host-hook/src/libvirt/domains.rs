//! Which domains run here, asked afresh: for what no event told.

use std::{collections::BTreeMap, time::Duration};

use zbus::{Connection, OwnedObjectPath};

use super::{LibvirtError, Place, bus, virsh::ask};

/// A libvirt that has not answered by then is asked again later.
const PATIENCE: Duration = Duration::from_secs(5);

// virConnectListAllDomainsFlags (libvirt-domain.h).
const ACTIVE: u32 = 1 << 0;
const PAUSED: u32 = 1 << 5;

/// A domain that has a QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Running,
    /// By an operator, or to go on elsewhere, or to begin here.
    Paused,
}

/// All that have one, by UUID as libvirt writes it.
pub type Domains = BTreeMap<String, State>;

/// Asks for all of them. Waits for a hook of a domain that is answered meanwhile; see [`super`].
///
/// # Errors
/// When libvirt does not answer.
pub async fn domains(place: &Place) -> Result<Domains, LibvirtError> {
    let ask = async {
        let way = Way::open(place).await;
        // In this order: who is paused in the second list only has ended or was just stopped, and of both an event comes.
        let active = way.list(place, ACTIVE).await?;
        let paused = way.list(place, PAUSED).await?;
        let state = |uuid: &String| if paused.contains(uuid) { State::Paused } else { State::Running };
        Ok(active.into_iter().map(|uuid| (uuid.clone(), state(&uuid))).collect())
    };
    tokio::time::timeout(PATIENCE, ask).await.unwrap_or(Err(LibvirtError::Silent(PATIENCE)))
}

/// The description of a domain that runs here.
///
/// # Errors
/// When libvirt does not answer, or does not know the domain.
pub async fn description(place: &Place, uuid: &str) -> Result<String, LibvirtError> {
    let ask = async {
        match Way::open(place).await {
            Way::Bus(bus) => {
                let object = bus::object(place, uuid);
                let answer = bus.call_method(Some(bus::SERVICE), object, Some(bus::DOMAIN), "GetXMLDesc", &0_u32);
                Ok(answer.await?.body().deserialize()?)
            }
            Way::Virsh => ask(place, &["dumpxml", uuid]).await,
        }
    };
    tokio::time::timeout(PATIENCE, ask).await.unwrap_or(Err(LibvirtError::Silent(PATIENCE)))
}

enum Way {
    Bus(Connection),
    Virsh,
}

impl Way {
    /// libvirt-dbus where it is, else `virsh`.
    async fn open(place: &Place) -> Way {
        match bus::connect(place).await {
            Ok(bus) if bus::wake(&bus, place).await.is_ok() => Way::Bus(bus),
            _ => Way::Virsh,
        }
    }

    async fn list(&self, place: &Place, which: u32) -> Result<Vec<String>, LibvirtError> {
        match self {
            Way::Bus(bus) => {
                let object = place.object.as_str();
                let answer = bus.call_method(Some(bus::SERVICE), object, Some(bus::CONNECT), "ListDomains", &which);
                let answer = answer.await?;
                let objects: Vec<OwnedObjectPath> = answer.body().deserialize()?;
                Ok(objects.iter().filter_map(|object| bus::uuid(object.as_str())).collect())
            }
            Way::Virsh => {
                let arguments =
                    if which == PAUSED { ["list", "--uuid", "--state-paused"].as_slice() } else { &["list", "--uuid"] };
                let said = ask(place, arguments).await?;
                Ok(said.split_whitespace().map(str::to_owned).collect())
            }
        }
    }
}
