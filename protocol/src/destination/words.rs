//! What the machine orders and what it is told.

use super::{Impassable, Refused};
use crate::{Decline, FromGuest, GuestFailure, Millis, Peer, ToGuest};

/// What the shell is to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Both tunnels' ends here, filters. Ends in [`Event::Built`] or [`Event::BuildFailed`].
    BuildEnds,
    /// Send full frames through the tunnels and back. Ends in [`Event::Carries`] or [`Event::Impassable`]; not waited for.
    TryTunnels,
    TellPeer(Peer),
    TellGuest(ToGuest),
    /// The waiting hook prints the rewritten XML, with a warning if there is one. Always the last order: the state must
    /// be on disk before libvirt goes on, or a restart takes the migration for one that libvirt has refused.
    Admit {
        warning: Option<GuestFailure>,
    },
    /// The waiting hook fails with this.
    Refuse(Refused),
    /// The new vNIC's MAC to its own tap, with what was put into the advance tunnel during the last round trip.
    PointAtTap,
    /// The new vNIC's MAC back into the advance tunnel.
    PointAtTunnel,
    RemoveAdvance,
    RemoveHome,
    /// Say that nothing has come from the source for so long, neither word nor frame, and that the old path is left.
    SourceLost(Millis),
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Built,
    BuildFailed(Decline),
    /// Full frames have crossed the tunnels, both ways.
    Carries,
    Impassable(Impassable),
    Peer(Peer),
    /// libvirt goes on: the VM's QEMU is started here.
    Begun,
    /// The VM runs here: the bridge has learnt its MAC, libvirt said Resumed, or the guest itself spoke.
    Arrived,
    Guest(FromGuest),
    /// libvirt: the VM is not here (any more).
    VmGone,
    /// Frames have come out of the home tunnel.
    Crossed,
    /// The operator asks for the tunnel to go.
    Release,
    /// The VM is asked for by the host that it came from, while its address there is held.
    Departs,
    /// That is called off: the VM is here as before.
    Stays,
    Deadline,
    /// The service was started and found this state on disk. What it missed follows: `Arrived` if libvirt finds the VM
    /// running here, `VmGone` if it had been started here and is not any more.
    Restarted,
}
