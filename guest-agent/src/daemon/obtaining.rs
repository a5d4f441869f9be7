//! Addresses from the new LAN, in the background; and those that are kept alive for as long as the VM has them.

use std::time::Duration;

use lsm_protocol::{
    FromGuest, Mac, MigrationId, Millis, Refusal, V6,
    guest::{Event, Step},
};

use super::{Daemon, now};
use crate::{
    dhcp::{self, Card, Lease},
    obtain::{self, Obtained, Owner, Wanted},
    path::{self, chain},
    record::{Change, Kept, Paths},
    slaac,
    vnic::Vnic,
};

/// What the background work has come to.
pub(super) enum Progress {
    Owner { migration: MigrationId, owner: Owner, new: Vnic },
    Obtained { migration: MigrationId, result: Result<Obtained, obtain::Failure> },
    Extended { mac: Mac, asked: Lease, answer: Result<Lease, dhcp::Failure> },
}

impl Daemon {
    /// Who is to get them is asked first: over D-Bus, which may take its time.
    pub(super) async fn begin_obtaining(&mut self) -> Option<Event> {
        self.stop_obtaining();
        let plan = self.record.guest.plan()?;
        let (old, new) = (self.find(plan.old).await, self.find(plan.new).await);
        let (old, new) = match (old, new) {
            (Ok(old), Ok(new)) => (old, new),
            (Err(why), _) | (_, Err(why)) => return Some(Event::Failed(Step::Obtain, why)),
        };
        let (progress, migration) = (self.progress.clone(), self.record.guest.migration()?);
        self.obtaining = Some(tokio::task::spawn_local(async move {
            let owner = Owner::of(new.index, old.index).await;
            let _ = progress.send(Progress::Owner { migration, owner, new });
        }));
        None
    }

    pub(super) async fn hear_of(&mut self, progress: Progress) {
        // What comes late is of another migration.
        let current = |migration| self.record.guest.migration() == Some(migration);
        match progress {
            Progress::Owner { migration, .. } | Progress::Obtained { migration, .. } if !current(migration) => {}
            Progress::Owner { owner, new, .. } => {
                if let Err(why) = self.ask_owner(owner, &new).await {
                    self.feed(Event::Failed(Step::Obtain, why)).await;
                }
            }
            Progress::Obtained { result, .. } => {
                let event = match self.take(result).await {
                    Ok(()) => Event::Done(Step::Obtain),
                    Err(why) => Event::Failed(Step::Obtain, why),
                };
                self.feed(event).await;
            }
            Progress::Extended { mac, asked, answer } => self.extended(mac, &asked, answer).await,
        }
    }

    /// Its parameters first, then the vNIC up, then the question: what is written down can be taken back at any moment.
    async fn ask_owner(&mut self, owner: Owner, new: &Vnic) -> Result<(), Refusal> {
        let Some(plan) = self.record.guest.plan().cloned() else { return Ok(()) };
        let card = Card { ifindex: new.index, mac: plan.new };
        let wanted =
            Wanted { card, name: new.name.clone(), table: path::TABLE + new.index, addressing: plan.addressing };
        tracing::info!(mac = %plan.new, %owner, "getting addresses of LAN {}", plan.lan);
        if !self.record.obtained.iter().any(|kept| kept.card.mac == plan.new) {
            self.record.obtained.push(Kept { card, owner, lease: None, parameters: Vec::new() });
        }
        self.save();
        if wanted.v6() {
            self.set_up_for_routers(owner, plan.new, &new.name);
        }
        let no_address = |failure| Refusal::NoAddress { mac: plan.new, detail: chain(&failure) };
        obtain::claim(owner, &wanted).await.map_err(no_address)?;
        path::plug(&mut self.kernel, &mut self.record, &plan).await?;
        let progress = self.progress.clone();
        self.obtaining = Some(tokio::task::spawn_local(async move {
            let result = obtain::obtain(owner, &wanted, now).await;
            let _ = progress.send(Progress::Obtained { migration: plan.migration, result });
        }));
        Ok(())
    }

    /// These stay for as long as the vNIC has the address, unlike what a migration alone needs.
    fn set_up_for_routers(&mut self, owner: Owner, mac: Mac, name: &str) {
        let others = std::mem::take(&mut self.record.changes);
        let (retrans, time) = slaac::RETRANS;
        path::set_parameter(&mut self.record, &format!("net/ipv6/neigh/{name}/{retrans}"), time);
        let parameters = if owner == Owner::Nobody { &slaac::PARAMETERS[..] } else { &slaac::WITH_AN_OWNER[..] };
        for (parameter, value) in parameters {
            path::set_parameter(&mut self.record, &format!("net/ipv6/conf/{name}/{parameter}"), value);
        }
        let made = std::mem::replace(&mut self.record.changes, others);
        if let Some(kept) = self.record.obtained.iter_mut().find(|kept| kept.card.mac == mac) {
            kept.parameters.extend(made);
        }
        self.save();
    }

    async fn take(&mut self, result: Result<Obtained, obtain::Failure>) -> Result<(), Refusal> {
        let Some(plan) = self.record.guest.plan().cloned() else { return Ok(()) };
        let no_address = |detail: String| Refusal::NoAddress { mac: plan.new, detail };
        let obtained = result.map_err(|failure| no_address(chain(&failure)))?;
        if let (Some(lease), Some(kept)) =
            (obtained.lease, self.record.obtained.iter_mut().find(|kept| kept.card.mac == plan.new))
        {
            kept.lease = Some((lease, lease.renew)); // before anything is refused: it is to be given back
        }
        for found in obtained.addresses {
            if let Some(subnet) = plan.addressing.excludes(found.address) {
                let detail = format!(
                    "{} is not of the LAN's subnet {subnet}; correct its DHCP server or router, or prefix in host.toml",
                    found.address
                );
                return Err(no_address(detail));
            }
            tracing::info!(mac = %plan.new, %found, "got an address");
            path::got(&mut self.kernel, &mut self.record, plan.new, found).await?;
        }
        self.save();
        Ok(())
    }

    /// What the host did not give, or a way back has kept, it hears of before the guest is prepared.
    pub(super) fn tell_addresses(&mut self) {
        if let (Some(plan), Some(paths)) = (self.record.guest.plan(), self.record.paths())
            && (plan.addressing.is_obtained() || self.record.guest.is_on_way_back())
        {
            let message = FromGuest::Addressed { migration: plan.migration, addresses: paths.new.addresses() };
            self.hosts.retain(|(_, host)| host.send(message.clone()).is_ok());
        }
    }

    pub(super) fn stop_obtaining(&mut self) {
        if let Some(task) = self.obtaining.take() {
            task.abort();
        }
    }

    /// A vNIC is given up: what was asked for its addresses is given back. Failures are for the log: the rest of the
    /// tear-down does not depend on it.
    pub(super) async fn give_up(&mut self, mac: Mac) {
        let Some(at) = self.record.obtained.iter().position(|kept| kept.card.mac == mac) else { return };
        let Kept { card, owner, lease, parameters } = self.record.obtained.remove(at);
        if let Some((lease, _)) = lease
            && let Err(error) = dhcp::release(card, &lease)
        {
            tracing::debug!(error = %chain(&error), "an address is not given back; its lease will end");
        }
        if let Err(error) = obtain::give_up(owner, card).await {
            tracing::warn!(%mac, %owner, error = %chain(&error), "it goes on with what it was asked for the vNIC");
        }
        for failure in path::take_back(&mut self.kernel, parameters).await {
            tracing::warn!(failure, "a kernel parameter stays as it is");
        }
        self.save();
    }

    /// The new vNIC's routers are the VM's own now.
    pub(super) fn follow_routers(&self, paths: Option<Paths>) {
        let exit = paths.and_then(|paths| paths.new.exits().find(|exit| exit.source.is_ipv6()));
        let kept = self.record.obtained.iter().find(|kept| paths.is_some_and(|paths| paths.new.mac == kept.card.mac));
        let autoconfigured = self.record.guest.plan().is_some_and(|plan| matches!(plan.addressing.v6, V6::Slaac(_)));
        let (Some(exit), Some(&Kept { card, owner: Owner::Nobody, .. }), true) = (exit, kept, autoconfigured) else {
            return;
        };
        tokio::task::spawn_local(async move {
            match slaac::follow(card, exit).await {
                Ok(()) => tracing::info!(mac = %card.mac, "the default route is the routers' to advertise"),
                Err(error) => tracing::warn!(
                    mac = %card.mac, error = %chain(&error),
                    "the default route stays as the move has set it: no router takes it back"
                ),
            }
        });
    }

    /// Those that an earlier run of the agent has left.
    pub(super) fn go_on_extending(&mut self) {
        for (lease, next) in self.record.obtained.iter_mut().filter_map(|kept| kept.lease.as_mut()) {
            *next = lease.next_try(now());
        }
    }

    /// When a lease is to be extended next.
    pub(super) fn next_extension(&self) -> Option<Millis> {
        self.record.obtained.iter().filter_map(|kept| kept.lease?.1).min()
    }

    /// Those whose time has come. `None` until the answer is there.
    pub(super) fn extend(&mut self) {
        for kept in &mut self.record.obtained {
            let Some((lease, next @ Some(_))) = &mut kept.lease else { continue };
            if next.is_some_and(|at| at > now()) {
                continue;
            }
            *next = None;
            let (card, asked, progress) = (kept.card, *lease, self.progress.clone());
            tokio::task::spawn_local(async move {
                let answer = dhcp::extend(card, &asked, now).await;
                let _ = progress.send(Progress::Extended { mac: card.mac, asked, answer });
            });
        }
    }

    async fn extended(&mut self, mac: Mac, asked: &Lease, answer: Result<Lease, dhcp::Failure>) {
        let now = now();
        let kept = self.record.obtained.iter_mut().find(|kept| kept.card.mac == mac);
        let Some((lease, next)) = kept.and_then(|kept| kept.lease.as_mut()) else { return };
        let lost = match answer {
            Ok(later) if later.address == asked.address => {
                tracing::info!(%mac, address = %later.address, "lease extended");
                (*lease, *next) = (later, later.renew);
                None
            }
            Ok(other) => Some(format!("the lease of {} became one of {}", asked.address, other.address)),
            Err(error @ dhcp::Failure::Nak { .. }) => Some(format!("{} is lost: {}", asked.address, chain(&error))),
            Err(error) if asked.end.is_some_and(|end| end <= now) => {
                Some(format!("the lease of {} has run out: {}", asked.address, chain(&error)))
            }
            Err(error) => {
                tracing::warn!(%mac, address = %asked.address, error = %chain(&error), "cannot extend a lease; trying again");
                *next = asked.next_try(now);
                None
            }
        };
        self.save();
        if let Some(detail) = lost {
            self.lose(mac, detail).await;
        }
    }

    /// It may be another's from now on.
    async fn lose(&mut self, mac: Mac, detail: String) {
        tracing::warn!(%mac, detail, "an address of the VM is gone");
        if let Some(kept) = self.record.obtained.iter_mut().find(|kept| kept.card.mac == mac)
            && let Some((lease, _)) = kept.lease.take()
        {
            let change = Change::Address { vnic: mac, address: lease.address.into(), prefix_len: lease.prefix_len };
            for failure in path::take_back(&mut self.kernel, vec![change]).await {
                tracing::warn!(failure, "it stays on the vNIC");
            }
        }
        self.save();
        if self.record.guest.plan().is_some_and(|plan| plan.new == mac) {
            self.feed(Event::Lost(Refusal::NoAddress { mac, detail })).await;
        }
    }

    async fn find(&self, mac: Mac) -> Result<Vnic, Refusal> {
        let found = self.kernel.vnics.find(mac).await;
        found.map_err(|e| Refusal::Path { mac, detail: chain(&e) })?.ok_or(Refusal::NoSuchVnic(mac))
    }
}

/// Until then, from now on.
pub(super) fn sleep_until(at: Option<Millis>) -> tokio::time::Sleep {
    tokio::time::sleep(Duration::from_millis(at.map_or(0, |at| at.saturating_sub(now()))))
}
