//! Which migrations of this host need which tunnels. A VM that goes back while its old address is held makes the home
//! tunnel of one migration the advance tunnel of the next: a tunnel goes when nobody needs it any more.

use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc};

use lsm_protocol::{Join, MigrationId, Offer, Uuid, destination::Destination};
use tokio::sync::{Mutex, OwnedMutexGuard};

/// One migration under way here.
#[derive(Debug)]
struct Claim {
    offer: Offer,
    /// The other host.
    peer: String,
    /// VNIs.
    tunnels: Vec<u32>,
    /// The VM has come here and may go back to where its old address is held.
    holds: bool,
    /// It is on its way back.
    aside: bool,
}

/// While it lives, the VM keeps the addresses that it has been given: the end of its last migration does not free them.
#[derive(Debug)]
pub struct Expected {
    all: Rc<RefCell<Vec<Uuid>>>,
    vm: Uuid,
}

impl Drop for Expected {
    fn drop(&mut self) {
        let mut all = self.all.borrow_mut();
        if let Some(at) = all.iter().position(|vm| *vm == self.vm) {
            all.swap_remove(at);
        }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Claims {
    all: RefCell<Vec<Claim>>,
    /// VMs that are being admitted, each as often as that goes on.
    expected: Rc<RefCell<Vec<Uuid>>>,
    /// By VNI.
    locks: RefCell<HashMap<u32, Arc<Mutex<()>>>>,
}

impl Claims {
    /// A migration begins, or goes on after a restart.
    pub fn begin(&self, offer: &Offer, peer: &str) {
        let advance = (offer.join == Join::Before).then_some(offer.advance.vni);
        let tunnels = [offer.home.vni].into_iter().chain(advance).collect();
        self.all.borrow_mut().push(Claim {
            offer: offer.clone(),
            peer: peer.to_owned(),
            tunnels,
            holds: false,
            aside: false,
        });
    }

    pub fn end(&self, migration: MigrationId) {
        self.all.borrow_mut().retain(|claim| claim.offer.migration != migration);
    }

    /// A VM is given addresses for a migration that begins later, or never.
    pub fn expect(&self, vm: Uuid) -> Expected {
        self.expected.borrow_mut().push(vm);
        Expected { all: self.expected.clone(), vm }
    }

    /// Whether a migration of the VM's has begun here and is not over, or is about to begin.
    pub fn concern(&self, vm: Uuid) -> bool {
        self.any_of(vm).is_some() || self.expected.borrow().contains(&vm)
    }

    /// How far it is, where the VM came to.
    pub fn stands(&self, migration: MigrationId, machine: &Destination) {
        for claim in self.all.borrow_mut().iter_mut().filter(|claim| claim.offer.migration == migration) {
            (claim.holds, claim.aside) = (machine.holds(), machine.is_aside());
        }
    }

    /// Whoever builds or removes a tunnel does it alone: a VM's next move may want what the last one is about to remove.
    pub async fn alone(&self, vni: u32) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.borrow_mut();
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            locks.entry(vni).or_default().clone()
        };
        lock.lock_owned().await
    }

    /// It needs the tunnel no more; whether anybody else does.
    pub fn give_up(&self, migration: MigrationId, vni: u32) -> bool {
        for claim in self.all.borrow_mut().iter_mut().filter(|claim| claim.offer.migration == migration) {
            claim.tunnels.retain(|tunnel| *tunnel != vni);
        }
        self.is_shared(migration, vni)
    }

    /// Another migration needs it too.
    pub fn is_shared(&self, migration: MigrationId, vni: u32) -> bool {
        let claims = self.all.borrow();
        claims.iter().any(|claim| claim.offer.migration != migration && claim.tunnels.contains(&vni))
    }

    /// A migration of this VM, whichever.
    pub fn any_of(&self, vm: Uuid) -> Option<MigrationId> {
        self.all.borrow().iter().find(|claim| claim.offer.vm == vm).map(|claim| claim.offer.migration)
    }

    /// A migration of which there is an offer.
    pub fn knows(&self, migration: MigrationId) -> bool {
        self.all.borrow().iter().any(|claim| claim.offer.migration == migration)
    }

    /// It is on its way back to where it came from.
    pub fn is_aside(&self, migration: MigrationId) -> bool {
        self.all.borrow().iter().any(|claim| claim.offer.migration == migration && claim.aside)
    }

    /// The migration that this offer, from this peer, is the way back of. What another host of the same LAN asks for is
    /// none: the tunnel of the address that is held leads elsewhere.
    pub fn way_back(&self, offer: &Offer, peer: &str) -> Option<MigrationId> {
        let claims = self.all.borrow();
        let mut of_vm = claims.iter().filter(|claim| claim.offer.vm == offer.vm);
        let (Some(only), None) = (of_vm.next(), of_vm.next()) else { return None };
        let turned = (only.offer.home, only.offer.advance) == (offer.advance, offer.home);
        (only.holds && only.peer == peer && turned && offer.join != Join::Never).then_some(only.offer.migration)
    }
}

#[cfg(test)]
mod tests {
    use lsm_protocol::{Addressing, Counts, Drain, Mac, TunnelId, V4, V6};

    use super::*;

    fn offer(number: u8, home: u8, advance: u8) -> Offer {
        let tunnel = |n: u8| TunnelId { mac: Mac([n; 6]), vni: n.into() };
        Offer {
            migration: MigrationId([number; 16]),
            vm: Uuid([9; 16]),
            home: tunnel(home),
            advance: tunnel(advance),
            join: Join::Before,
            lan: "dallas".to_owned(),
            addressing: Addressing { v4: V4::None, v6: V6::None },
            mtu: 1500,
            underlay: [10, 0, 0, 1].into(),
            port: 4789,
            drain: Drain::UntilIdle,
            lease: 60_000,
        }
    }

    fn arrived(offer: Offer) -> Destination {
        Destination::Arrived {
            offer,
            switched: Some(Counts::default()),
            repeat: 0,
            leave: None,
            heard: 0,
            aside: false,
        }
    }

    /// Its last migration ends while addresses are given out for the next one, which is not known yet.
    #[test]
    fn a_vm_that_comes_back_keeps_what_it_was_given_meanwhile() {
        let (claims, went, back) = (Claims::default(), offer(1, 1, 2), offer(2, 2, 1));
        claims.begin(&went, "montreal");
        let (expected, refused) = (claims.expect(back.vm), claims.expect(back.vm));
        claims.end(went.migration);
        drop(refused);
        assert!(claims.concern(back.vm), "it is being admitted");
        claims.begin(&back, "montreal");
        drop(expected);
        assert!(claims.concern(back.vm), "it comes");
        claims.end(back.migration);
        assert!(!claims.concern(back.vm));
    }

    #[test]
    fn a_tunnel_goes_when_nobody_needs_it() {
        let (claims, came, back) = (Claims::default(), offer(1, 1, 2), offer(2, 2, 1));
        claims.begin(&came, "montreal");
        assert!(!claims.give_up(came.migration, 2), "the advance tunnel, after the arrival");
        claims.begin(&back, "montreal");
        assert!(claims.is_shared(back.migration, 1) && !claims.is_shared(back.migration, 2));
        // Called off: what is held stays.
        assert!(claims.give_up(back.migration, 1) && !claims.give_up(back.migration, 2));
        claims.end(back.migration);
        // There: whoever is the last takes it down.
        claims.begin(&back, "montreal");
        assert!(claims.give_up(came.migration, 1));
        claims.end(came.migration);
        assert!(!claims.give_up(back.migration, 1));
        assert_eq!(claims.any_of(back.vm), Some(back.migration));
        claims.end(back.migration);
        assert_eq!(claims.any_of(back.vm), None);
    }

    #[test]
    fn the_way_back_is_by_the_same_tunnels_to_the_same_host_once_all_has_switched() {
        let (claims, came, back) = (Claims::default(), offer(1, 1, 2), offer(2, 2, 1));
        claims.begin(&came, "montreal");
        assert_eq!(claims.way_back(&back, "montreal"), None, "it has not switched");
        claims.stands(came.migration, &arrived(came.clone()));
        assert_eq!(claims.way_back(&back, "montreal"), Some(came.migration));
        assert_eq!(claims.way_back(&back, "laval"), None, "another host of the LAN");
        assert_eq!(claims.way_back(&offer(2, 2, 3), "montreal"), None, "another vNIC");
        assert_eq!(claims.way_back(&Offer { join: Join::Never, ..back.clone() }, "montreal"), None);
        claims.begin(&back, "montreal");
        assert_eq!(claims.way_back(&offer(3, 2, 1), "montreal"), None, "one at a time");
    }
}
